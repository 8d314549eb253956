"Everything that must hold for a commit. Prints one line a check; the last line is `N passed, N failed`."
import ast, contextlib, json, os, re, socket, subprocess, sys, tempfile, threading, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
import nbformat, psutil

TOP = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TMP = tempfile.TemporaryDirectory(prefix='vpstudy-test-')
ENV = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}', 'VPSTUDY_DATA': f'{TMP.name}/data',
       'VPSTUDY_THREADS': '1', 'OMP_NUM_THREADS': '1'} # parts run two at a time, each on one core
SMOKE = '-p backbone glyphs_smoke -p epochs 2 -p modes flm,lp'.split()
results = []

part = threading.local() # lines of the part that runs in this thread, printed together

def check(name, ok, why=''):
    "Count one check and keep its line"
    results.append(bool(ok))
    part.lines.append(f'{"ok    " if ok else "FAILED"} {name}' + ('' if ok else f'\n       {str(why).strip()[-3000:]}'))

def run(*args, cwd=TOP, **env): return subprocess.run(args, cwd=cwd, env={**ENV, **env}, capture_output=True, text=True)

def snapshot(*patterns): return {p: sha256(p.read_bytes()).hexdigest() for pattern in patterns for p in TOP.glob(pattern)}

def invalid(notebook):
    "What the notebook format has against it"
    try: nbformat.validate(json.loads(notebook.read_text()))
    except nbformat.ValidationError as e: return e

def clean_and_exported():
    "nbdev_clean and nbdev_export change nothing; the README says what index.ipynb says"
    files = 'nbs/**/*.ipynb', 'vpstudy/**/*.py'
    before = snapshot(*files)
    out = [run('nbdev_clean'), run('nbdev_export')]
    after = snapshot(*files)
    changed = [str(p.relative_to(TOP)) for p in before | after if before.get(p) != after.get(p)]
    check('nbdev_clean and nbdev_export leave no difference', not changed and all(o.returncode == 0 for o in out), changed or out[0].stderr + out[1].stderr)
    r = run('make', '--silent', f'VENV={BIN.parent}', 'check-readme')
    check('README.md is nbs/index.ipynb', r.returncode == 0, r.stdout + r.stderr)
    large = [p.name for p in before if p.suffix == '.ipynb' and p.stat().st_size > 1_500_000]
    check('no notebook is over 1.5 MB', not large, large)
    wrong = {p.name: str(e) for p in before if p.suffix == '.ipynb' and (e := invalid(p))}
    check('every notebook is valid, saved outputs too', not wrong, wrong)
    def pictures(nb): return sum('image/png' in o.get('data', {}) for c in json.loads((TOP/'nbs'/nb).read_text())['cells'] for o in c.get('outputs', []))
    without = [nb for nb in ('14_glyphs.ipynb', '25a_network.ipynb', '31_target.ipynb', '37a_scoring.ipynb', 'reports/report_study.ipynb', 'reports/show_targets.ipynb') if not pictures(nb)]
    check('saved outputs show the pictures', not without, without)

def notebooks():
    "Plain nbdev_test from the top, and how many notebooks it ran"
    names = {p.name for p in (TOP/'nbs').rglob('*.ipynb') if not p.name.startswith('_') and '.ipynb_checkpoints' not in p.parts}
    r = run('nbdev_test', '--do_print', '--n_workers', '1')
    done = {Path(m).name for m in re.findall(r'- Completed (\S+)', r.stdout)}
    failed = set(re.findall(r'^\t(\S+\.ipynb)$', r.stderr + r.stdout, re.M))
    for n in sorted(names): check(f'nbs/{n}', n in done and n not in failed, r.stderr if n in failed else 'did not run')
    check(f'nbdev_test ran {len(done)} of {len(names)} notebooks, rc {r.returncode}', done == names and r.returncode == 0, r.stderr)

def ids():
    "Ids are a contract (.ci/ids.py)"
    sys.path.insert(0, str(TOP/'.ci'))
    from ids import STUDIES, differing
    for study in STUDIES:
        new, lost, n, absent = differing(study)
        check(f'ids of {study}: {n} as in .ci/ids' + f', {len(absent)} reasons why others are not known here' * bool(absent), n and not new and not lost, (new[:3], lost[:3]))

def records(where): return {p.stem: json.loads(p.read_text()) for p in Path(where).glob('*/*.json')}

def papermill(*args, cwd=TOP/'nbs', notebook='run.ipynb'):
    return run('papermill', str(notebook), f'{TMP.name}/{time.monotonic_ns()}.ipynb', *args, cwd=cwd)

def good_parameters():
    for cwd, notebook in ((TOP/'nbs', 'run.ipynb'), (TOP, 'nbs/run.ipynb')):
        where = tempfile.mkdtemp(dir=TMP.name)
        r = papermill('-p', 'sparsity', '0.9', '-p', 'shots', '1', '-p', 'seeds', '0', '-p', 'records', where, *SMOKE, cwd=cwd, notebook=notebook)
        said = {d['setting']['sparsity'] for d in records(where).values()}
        check(f'papermill {notebook} -p sparsity 0.9: two records that say 0.9', r.returncode == 0 and said == {.9} and len(records(where)) == 2, r.stderr or said)

BAD = { # arguments -> what the last line has to name: the value, and what is allowed
    '-p sparsityy 0.9': ("'sparsityy' (= 0.9)", 'allowed are: backbone'),
    '-p sparsity 1.5': ('sparsity=1.5', 'from 0 up to'),
    '-p sparsity hello': ("sparsity='hello'", 'a number'),
    '-p targets mnits': ("'mnits'", 'digits, cifar10'),
    '-p backbone efficientnet_lite0': ('images=None', 'give a pack'),
    '-p shots 0': ('shots=0', '1 or more'),
    '-p method dense -p sparsity 0.9': ('sparsity=0.9', "'dense' has no parameters"),
}

def bad_parameters():
    where = tempfile.mkdtemp(dir=TMP.name)
    untagged = Path(TMP.name)/'untagged.ipynb'
    untagged.write_text((TOP/'nbs/run.ipynb').read_text().replace('"parameters"', '"other"'))
    cases = [*[(a, a.split(), 'run.ipynb', want) for a, want in BAD.items()], ('the parameters tag removed, -p sparsity 0.9', ['-p', 'sparsity', '0.9'], untagged, ('sparsity = 0.9', "tag"))]
    for name, args, notebook, want in cases:
        r = papermill(*args, '-p', 'records', where, notebook=notebook)
        last = (r.stderr.strip().splitlines() or [''])[-1]
        check(f'papermill {name}: rc {r.returncode}, {last}', r.returncode != 0 and all(w in last for w in want), r.stderr)
    check('none of them wrote a record', not records(where), records(where).keys())

def kill_and_resume():
    "kill -9 in the middle and start again: the same records as undisturbed, no half file, only missing trials run"
    args = [*SMOKE, '-p', 'epochs', '40', '-p', 'shots', '1,10', '-p', 'seeds', '0,1']
    calm, killed = (tempfile.mkdtemp(dir=TMP.name) for _ in range(2))
    r = papermill(*args, '-p', 'records', calm)
    want = records(calm)
    check('an undisturbed run writes 8 records', r.returncode == 0 and len(want) == 8, r.stderr)
    p = subprocess.Popen(['papermill', 'run.ipynb', f'{TMP.name}/killed.ipynb', *args, '-p', 'records', killed], cwd=TOP/'nbs', env={**ENV, 'VPSTUDY_THREADS': '2'}, stderr=subprocess.DEVNULL)
    while p.poll() is None and len(records(killed)) < 3: time.sleep(.05)
    for child in [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]: # SIGKILL: papermill, the kernel, its workers
        with contextlib.suppress(psutil.NoSuchProcess): child.kill() # a worker ends by itself where its parent is gone
    p.wait()
    early = {f: f.stat().st_mtime_ns for f in Path(killed).glob('*/*.json')}
    check(f'kill -9 after {len(early)} of 8 records', 0 < len(early) < 8, len(early))
    r = papermill(*args, '-p', 'records', killed)
    got = records(killed)
    check('started again, the run ends with the same metrics to the last digit', r.returncode == 0 and {k: v['metrics'] for k, v in got.items()} == {k: v['metrics'] for k, v in want.items()}, r.stderr)
    check('and the same logits', {k: v['logits']['sha256'] for k, v in got.items()} == {k: v['logits']['sha256'] for k, v in want.items()})
    check('finished trials were not touched', all(f.stat().st_mtime_ns == t for f, t in early.items()))
    left = [f.name for f in Path(killed).rglob('*') if f.is_file() and f.suffix not in ('.json', '.safetensors')]
    whole = {f.name for f in Path(killed).rglob('*.safetensors')} == {i + end for i in got for end in ('.safetensors', '.trained.safetensors')}
    check('no half file is left', whole and not left, left)

def studies():
    study_and_report()
    on_two_workers()

def study_and_report():
    "A study file from nothing to its page, and again"
    study, where = Path(TMP.name)/'smoke.yaml', Path(TMP.name)/'study'/'records'
    study.write_text('report: report_study.ipynb\ncommon: {backbone: glyphs_smoke, shots: [1, 10], seeds: [0, 1], epochs: 2, modes: [ilm, lp]}\nsettings:\n- {method: dense}\n- {method: gmp, sparsity: 0.9}\n')
    code = f"from vpstudy.cli import main; main(['run', {str(study)!r}, '--records', {str(where)!r}, '--figures', {TMP.name + '/figures'!r}, '--json'])"
    r = run(sys.executable, '-c', code)
    check('a study of two settings runs and reports: 16 trials', r.returncode == 0 and len(records(where)) == 16 and '"missing": 0' in r.stdout, r.stderr)
    made = {p.name for p in Path(TMP.name, 'figures').glob('*')}
    want = {f'{n}.{e}' for n in ('accuracy_by_shots', 'ece_by_shots', 'reliability_diagrams', 'mapping_picture', 'difference_by_shots') for e in ('png', 'svg')} | {'report_study.html'}
    check('with all its figures and the page', made == want, made ^ want)
    stamps = {p: p.stat().st_mtime_ns for p in where.rglob('*') if p.is_file()}
    next(where.glob('*/*.json')).unlink(); gone = len(records(where))
    r = run('vpstudy_study', 'status', str(study), '--records', str(where), '--json')
    check('status says what is missing', gone == 15 and {k: v for k, v in json.loads(r.stdout or '{}').items() if k in ('settings', 'trials', 'done', 'missing', 'failed')} == dict(settings=2, trials=16, done=15, missing=1, failed=[]), r.stdout + r.stderr)
    r = run(sys.executable, '-c', code)
    again = {p: p.stat().st_mtime_ns for p in where.rglob('*.json')}
    check('run again, only the missing trial is run', r.returncode == 0 and sum(stamps.get(p) != t for p, t in again.items()) == 1, r.stderr)
    r = run('vpstudy_study', 'run', 'nowhere.yaml')
    check('a study file that is not there: one line, rc 1', r.returncode == 1 and r.stderr.startswith("vpstudy_study: study file 'nowhere.yaml'") and r.stderr.count('\n') == 1, r.stderr)

def on_two_workers():
    "The same study on two Dask workers gives what one process gives, trial by trial; packed, it counts as done elsewhere; a sample is checked"
    study, other, where = Path(TMP.name)/'smoke.yaml', Path(TMP.name)/'study'/'records', Path(TMP.name)/'workers'/'records'
    plain = Path(TMP.name)/'workers.yaml'
    plain.write_text(study.read_text().replace('report: report_study.ipynb\n', ''))
    r = run('vpstudy_study', 'run', str(plain), '--records', str(where), '--cluster', 'local', '--workers', '2')
    same = lambda a, b: {k: (v['metrics'], v['logits']['sha256']) for k, v in records(a).items()} == {k: (v['metrics'], v['logits']['sha256']) for k, v in records(b).items()}
    check('two Dask workers give the records of one process, to the last digit', r.returncode == 0 and len(records(where)) == 16 and same(where, other), r.stderr)
    out = r.stdout.splitlines() or ['']
    check('people get the means as a table, and the totals last', out[-1].startswith('settings: 2, trials: 16, done: 16') and any(re.fullmatch(r' *ilm +10( +0\.\d{3} \(0\.\d{3}\)){2}', l) for l in out), r.stdout)
    log = [l for l in r.stderr.splitlines() if not re.match(r'\d+/18 \||\d\d:\d\d \| |dashboard: ', l)]
    check('and on the error output what goes on, without chatter', ' trial digits ' in r.stderr and not log, log)
    r = run('vpstudy_study', 'check', str(plain), '--records', str(where), '--sample', '3', '--json')
    said = json.loads(r.stdout or '{}')
    check('vpstudy_study check: 3 compared, 0 differ', (r.returncode, said.get('compared'), said.get('differing')) == (0, 3, 0), r.stdout + r.stderr)
    r = run('vpstudy_study', 'pack', f'{TMP.name}/elsewhere/results/smoke.parquet', '--records', str(where))
    p = run('vpstudy_study', 'plan', str(plain), '--records', f'{TMP.name}/elsewhere/records', '--reuse', '--json')
    said = json.loads(p.stdout or '{}')
    check('packed and reused, all trials count as done elsewhere', r.returncode == 0 and (said.get('trials'), said.get('done'), said.get('hours')) == (16, 16, 0), r.stderr + p.stderr)
    pages = ['report_claims', 'report_sparsity', 'report_tickets', 'report_quantization', 'report_calibration', 'report_mapping']
    plain.write_text(f'report: [{", ".join(f"{n}.ipynb" for n in pages)}]\n' + plain.read_text())
    site = Path(TMP.name)/'site'/'report'/plain.stem
    r = run('vpstudy_study', 'report', str(plain), '--reuse', '--records', f'{TMP.name}/elsewhere/records', '--figures', str(site.parent.parent))
    check('and become a site of six pages and an index, behind one for all studies', r.returncode == 0 and {p.name for p in site.glob('*.html')} == {'index.html', *(f'{n}.html' for n in pages)} and f'{plain.stem}/index.html' in (site.parent/'index.html').read_text(), r.stderr)
    asked = [u for p in site.glob('*.html') for u in re.findall(r'(?:src|href)="([^"]*)"', p.read_text()) if not u.startswith(('data:', '#')) and not (site/u).exists()]
    check('that asks no server and has no dead link', not asked, asked[:5])

COUNT = """
import json, sys
from pathlib import Path
from vpstudy.study.overview import study_plan, study_status
from vpstudy.study.study import Study
for file in sorted(Path('nbs/studies').resolve().glob('*.yaml')):
    for reuse in (None, True) if "imagenet" not in file.stem and file.stem != "published" else [None]:
        s = Study(str(file), reuse=reuse)
        said = [{k: d[k] for k in ('trials', 'done', 'missing')} for d in (study_plan(file, reuse=reuse), study_status(file, reuse=reuse))]
        print(json.dumps([file.stem, reuse, *said, dict(trials=len(s.expected), done=len(s.found), missing=len(s.missing))]))"""

def counts():
    "plan, status and report count alike, for every study file, here and where there are other images of the same names; so does a run that reuses"
    from PIL import Image
    import io
    from vpstudy.base.packs import write_pack
    def picture(k): return (Image.new('RGB', (8, 8), (k, 90, 200)).save(b := io.BytesIO(), 'PNG'), b.getvalue())[1]
    images = [dict(image=picture(k), label=k % 12, split='train' if k < 132 else 'test', path=f'{k}.png') for k in range(144)]
    for n in ('cifar10', 'dtd10_partial', 'gtsrb', 'flowers102', 'caltech101', 'tiny_imagenet'): write_pack(Path(TMP.name)/f'packs/{n}.parquet', images, [f'class {c}' for c in range(12)])
    for place, packs in (('nothing but the clone', ''), ('other packs of the same names', f'{TMP.name}/packs')):
        r = run(sys.executable, '-c', COUNT, VPSTUDY_DATA='', VPSTUDY_PACKS=packs, VPSTUDY_WEIGHTS='')
        rows = [json.loads(line) for line in r.stdout.splitlines()]
        check(f'{place}: plan, status and report count alike, {len(rows)} times', r.returncode == 0 and len(rows) == 9 and all(a == b == c for _, _, a, b, c in rows), r.stdout + r.stderr)
        have = {(n, reuse): a['done'] for n, reuse, a, *_ in rows}
        check('  tables are taken where the study file or the command says so', (have.get(('embedded', None)), have.get(('embedded', True)), have.get(('embedded_full', None)), have.get(('modes', None)), have.get(('modes', True))) == (0, 108, 4386, 0, 234), have)
        if not packs: check('  what cannot be resolved here is counted from its records: 540 of imagenet_small', have.get(('imagenet_small', None)) == 540, have)
    study = Path(TMP.name)/'embedded.yaml'
    study.write_text((TOP/'nbs/studies/embedded.yaml').read_text().replace('report: report_study.ipynb\n', ''))
    r = run('vpstudy_study', 'run', str(study), '--reuse', '--json', VPSTUDY_DATA='')
    said = json.loads(r.stdout or '{}')
    check('a run that reuses has nothing to run, and says from which table', (said.get('done'), said.get('missing'), said.get('archives')) == (108, 0, [dict(archive='embedded_full.parquet', trials=108)]), r.stdout + r.stderr)

def arrows() -> set: # of (room, room it imports), dotted, without 'vpstudy.'
    "Who imports whom, at the top of a room or late: read from the sources"
    found, rooms = set(), {'.'.join(p.relative_to(TOP/'vpstudy').with_suffix('').parts).removesuffix('.__init__'): p for p in (TOP/'vpstudy').rglob('*.py')}
    for room, path in rooms.items():
        package = ['vpstudy', *path.relative_to(TOP/'vpstudy').parts[:-1]]
        for n in ast.walk(ast.parse(path.read_text())):
            if isinstance(n, ast.Import): names = [a.name for a in n.names]
            elif isinstance(n, ast.ImportFrom):
                base = '.'.join([*package[:len(package) + 1 - n.level], *([n.module] if n.module else [])]) if n.level else n.module
                names = [f'{base}.{a.name}' for a in n.names]
            elif isinstance(n, ast.Constant) and isinstance(n.value, str) and re.fullmatch(r'vpstudy(\.\w+)+:\w+', n.value): names = [n.value.replace(':', '.')] # a `Later`
            else: continue
            for name in names:
                if not name.startswith('vpstudy.'): continue
                to = name.removeprefix('vpstudy.')
                while to and to not in rooms: to = to.rpartition('.')[0]
                if to and to != room: found.add((room, to))
    return found

def circles(arrows:set) -> list: # of rooms that reach themselves
    "Rooms from which arrows lead back"
    to = {}
    for a, b in arrows: to.setdefault(a, set()).add(b)
    def reached(a):
        seen, more = set(), {a}
        while more: more = {c for b in more for c in to.get(b, ())} - seen; seen |= more
        return seen
    return sorted(a for a in to if a in reached(a))

WINGS = 'base', 'networks', 'compress', 'transfer', 'study', 'report', 'cli' # from the ground up

def house():
    "Six wings and the cli: no circle, no arrow up; registries whole from any import, names known without torch"
    every = {(a, b) for a, b in arrows() if '_modidx' not in (a, b) and '' not in (a, b)}
    wing = lambda room: room.split('.')[0]
    across = {(wing(a), wing(b)) for a, b in every if wing(a) != wing(b)}
    check(f'{len({r for e in every for r in e})} rooms and {len(every)} arrows: all in six wings and the cli', {w for e in across for w in e} == {*WINGS}, across)
    check('no arrow up', all(WINGS.index(b) < WINGS.index(a) for a, b in across), across)
    check('compress and transfer do not import each other', not across & {('compress', 'transfer'), ('transfer', 'compress')}, across)
    inside = {(a, b) for a, b in every if a not in WINGS} # a title page names its rooms, which is no dependence of theirs
    check('no circle', not circles(inside), circles(inside))
    def blind(*names): return ('import sys\nclass No:\n def find_spec(self, name, *_):\n'
                               f'  if name.partition(".")[0] in {names}: raise ImportError(name + " was imported")\nsys.meta_path.insert(0, No())\n')
    for room in ('stats', 'differences', 'claims'):
        r = run(sys.executable, '-c', blind('torch', 'matplotlib') + f'import vpstudy.report.{room}')
        check(f'report.{room} draws nothing and needs no network', r.returncode == 0, r.stderr)
    for entry, n in (('compress import methods', 13), ('transfer import modes', 14), ('networks import sources', 13), ('transfer import targets', 9),
                     ('transfer import prompts', 5), ('transfer import mappings', 8), ('compress.checkpoints import dialects', 12)):
        r = run(sys.executable, '-c', blind('torch') + f'from vpstudy.{entry} as entries; print(len(entries))')
        check(f'from vpstudy.{entry}: {n} entries, without torch', r.stdout.strip() == str(n), r.stdout + r.stderr)
    for name, text, why in (('a method', 'settings: [{method: gpm}]', "method 'gpm' is unknown"), ('a parameter', 'settings: [{method: gmp, sparsty: 0.9}]', "'sparsty'"),
                            ('a mode', 'settings: [{method: dense, modes: [lip]}]', "mode 'lip' is unknown"), ('a budget', 'settings: [{method: dense, shots: 0}]', 'shots=0')):
        (file := Path(TMP.name)/f'{name[2:]}.yaml').write_text(text)
        r = run(sys.executable, '-c', blind('torch') + f'from vpstudy.cli import main; main(["plan", {str(file)!r}])')
        check(f'vpstudy plan refuses {name} that it does not know before it imports torch', r.returncode == 1 and why in r.stderr and r.stderr.count('\n') == 1, r.stderr)

MINE = """#| default_exp own.mine
#| export
import torch
from vpstudy.compress.checkpoints import Translated, dialects, has
from vpstudy.transfer import mappings, prompts, targets
from vpstudy.transfer.mapping import Mapping, greedy
from vpstudy.transfer.prompt import WatermarkPrompt
from vpstudy.transfer.target import Target

@targets.register('halves')
def halves():
    "Which half is bright"
    x = torch.zeros(60, 1, 8, 8, dtype=torch.uint8); x[::2, :, :4] = 255; x[1::2, :, 4:] = 255
    y, at = torch.arange(60) % 2, dict(train=slice(0, 30), test=slice(30, 60))
    return Target('halves', ['top', 'bottom'], {s: x[i] for s, i in at.items()}, {s: y[i] for s, i in at.items()}, 8, 'mine')

@prompts.register('faint')
class FaintPrompt(WatermarkPrompt):
    "A tenth of a watermark"
    def added(self): return super().added() / 10

@mappings.register('second', cls=Mapping)
def second(votes, generator): return greedy(votes).flip(0)

class Mine:
    def seen(raw): return has(raw, r'^theirs\\.fc\\.weight$')
    def translate(raw): return Translated('resnet18', {k.removeprefix('theirs.'): v for k, v in raw.state.items()})
dialects['mine'] = Mine
"""

def own_rooms():
    "A method with a parameter of its own, as README says, and a target, a prompt, a mapping, a dialect: in a notebook each, and nothing else is touched"
    top, data = Path(TMP.name)/'own_rooms', f'{TMP.name}/own_rooms_data'
    for f in run('git', 'ls-files', '--cached', '--others', '--exclude-standard').stdout.splitlines():
        if (TOP/f).is_file(): (top/f).parent.mkdir(parents=True, exist_ok=True); (top/f).write_bytes((TOP/f).read_bytes())
    code = next(c for c in re.findall(r'```python\n(.*?)```', (TOP/'README.md').read_text(), re.S) if 'own.lowrank' in c)
    for name, cell in dict(lowrank=code, mine=MINE).items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip())]), top/'nbs'/f'{name}.ipynb')
    own = lambda *args: run(*map(str, args), cwd=top, PYTHONPATH=str(top), VPSTUDY_DATA=data)
    r = own('nbdev_export')
    made = {p.name for p in (top/'vpstudy'/'own').glob('*.py')}
    check('nbdev_export makes rooms of two notebooks', r.returncode == 0 and made >= {'lowrank.py', 'mine.py'}, r.stdout + r.stderr)
    smoke = '-p backbone glyphs_smoke -p epochs 2 -p shots 1 -p seeds 0'.split()
    go = lambda *more: own('papermill', 'nbs/run.ipynb', f'{data}/{time.monotonic_ns()}.ipynb', *more)
    Path(data).mkdir()
    r = go(*smoke, *'-p method lowrank -p rank 4 -p modes lp'.split())
    [d] = [d for d in records(f'{data}/records').values() if d['setting']['method'] == 'lowrank'] or [dict(setting_id='', setting={})]
    check('papermill run.ipynb -p method lowrank -p rank 4: in its setting id and its record', r.returncode == 0 and 'lowrank-rank-4' in d['setting_id']
          and d['setting'].get('params') == dict(rank=4), r.stderr)
    r = go(*smoke, *'-p method lowrank -p rank 0 -p modes lp'.split())
    check('rank 0 is refused with a sentence', r.returncode == 1 and 'rank=0 is not allowed' in r.stderr, r.stderr)
    r = go(*smoke, *'-p method gmp -p rank 4'.split())
    check('and so is a rank of gmp', r.returncode == 1 and "'rank'" in r.stderr, r.stderr)
    (study := top/'low.yaml').write_text('report: report_study.ipynb\ncommon: {backbone: glyphs_smoke, shots: 1, seeds: [0, 1], epochs: 2, modes: [lp]}\nsettings:\n- {method: dense}\n- {method: lowrank, rank: [2, 4]}\n')
    r = own('vpstudy', 'run', study, '--figures', f'{data}/figures')
    page = Path(data, 'figures', 'report_study.html')
    drawn = Path(data, 'figures', 'accuracy_by_shots.svg')
    check('a study of ranks 2 and 4: its table and its figures name them', r.returncode == 0 and all(f'lowrank rank {k}' in p.read_text() for k in (2, 4) for p in (page, drawn)), r.stdout + r.stderr)
    r = own('vpstudy', 'archive', f'{data}/results/low.parquet')
    s = own(sys.executable, '-c', f"import pandas as pd; t = pd.read_parquet('{data}/results/low.parquet'); print(sorted(t['rank'].dropna().unique()))")
    check('and so does the archive, in a column', s.stdout.strip() == '[np.float64(2.0), np.float64(4.0)]', r.stderr + s.stdout + s.stderr)
    r = go(*smoke, *'-p method dense -p targets halves -p prompt faint -p modes second,ilm'.split())
    got = {(d['trial']['target'], d['trial']['mode'], d['trial']['prompt']) for d in records(f'{data}/records').values()}
    check('a target, a prompt and a mapping: two records', r.returncode == 0 and got >= {('halves', m, 'faint') for m in ('second', 'ilm')}, r.stderr)
    own(sys.executable, '-c', f"import torch; from torchvision.models import resnet18; torch.manual_seed(0); torch.save({{f'theirs.{{k}}': v for k, v in resnet18().state_dict().items()}}, '{data}/theirs.pth')")
    r = go(*'-p method checkpoint -p targets halves -p shots 1 -p seeds 0 -p epochs 1 -p modes lp'.split(), '-p', 'checkpoint', f'{data}/theirs.pth')
    got = [d['setting']['weights'] for d in records(f'{data}/records').values() if d['setting']['method'] == 'checkpoint']
    check('a dialect: a record of its checkpoint', r.returncode == 0 and len(got) == 1 and got[0].startswith('mine 0.0%'), r.stderr or got)

def jobs_elsewhere():
    "Jobs on a worker unlike the machine that planned them: another processor, other folders, another kernel called python3, a disk of its own"
    top = Path(TMP.name)/'jobs-elsewhere'
    spec, info, study, own = top/'jupyter/kernels/python3/kernel.json', top/'cpuinfo', top/'smoke.yaml', top/'own'
    for folder in (spec.parent, own): folder.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=['/nowhere/python', '-m', 'ipykernel_launcher', '-f', '{connection_file}'], display_name='another', language='python')))
    study.write_text('common: {backbone: glyphs_smoke, targets: digits, modes: [ilm, lp], shots: 1, seeds: 0, epochs: 2}\nsettings: [{method: dense}]\n')
    text = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    bf16 = bool(re.search(r'\b(avx512_bf16|amx_bf16)\b', text))
    info.write_text(re.sub(r'\b(avx512_bf16|amx_bf16)\b', '', text) if bf16 else re.sub(r'(?m)^(flags\s*:.*)$', r'\1 avx512_bf16', text))
    mounts = f'mount --bind {info} /proc/cpuinfo && mount -t tmpfs tmpfs {own}'
    apart = run('unshare', '-rm', 'bash', '-c', mounts).returncode == 0 # the right to mount, in a namespace of its own
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); where = f'tcp://127.0.0.1:{s.getsockname()[1]}'
    worker = f'exec {BIN}/dask worker {where} --nthreads 1 --no-dashboard --host 127.0.0.1'
    env = {**ENV, 'VPSTUDY_DATA': str(top/'worker'), 'JUPYTER_PATH': str(top/'jupyter')}
    procs = [subprocess.Popen(args, cwd=top, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for args in
             ([f'{BIN}/dask', 'scheduler', '--host', '127.0.0.1', '--port', where.split(':')[-1], '--no-dashboard'],
              ['unshare', '-rm', 'bash', '-c', f'{mounts} && {worker}'] if apart else ['bash', '-c', worker])]
    said = lambda r: json.loads((r.stdout.strip().splitlines() or ['{}'])[-1])
    try:
        command = 'vpstudy_study', 'run', str(study), '--cluster', where, '--json'
        r = run(*command, cwd=top, VPSTUDY_DATA=str(top/'head'))
        found = records(top/'head/records')
        want = {'ilm': 'bf16' if bf16 else 'fp32', 'lp': 'fp32'}
        check('a worker with another processor and other folders runs what was planned, where it was planned', r.returncode == 0 and said(r).get('missing') == 0
              and {d['trial']['mode']: d['trial']['precision'] for d in found.values()} == want and not (top/'worker').exists(), r.stdout + r.stderr)
        if not apart: return part.lines.append('       (a disk of its own: not tried, this user may not mount)')
        r = run(*command, '--records', 'own/records', cwd=top, VPSTUDY_DATA=str(top/'head'))
        [why] = [f['reason'] for f in said(r).get('failed', [])] or ['']
        check('records on a disk that only the worker has: rc 1 and a sentence that names the directory', r.returncode == 1 and said(r)['missing'] == 2
              and why.startswith('the job ended, but 2 of its 2 trials have no record') and why.count(f'{own}/records/glyphs_smoke-dense') == 2, r.stdout + r.stderr)
        r = run('vpstudy_study', 'run', str(study), '--records', 'own/records', '--json', cwd=top, VPSTUDY_DATA=str(top/'head'), VPSTUDY_THREADS='none')
        check('failed again for another reason, status says the new one', [f['reason'][:23] for f in said(r).get('failed', [])] == ["VPSTUDY_THREADS='none' "], r.stdout + r.stderr)
    finally:
        for p in procs: p.terminate()
        for p in procs: p.wait()

def faults():
    "The quick ones of .ci/faults.py"
    r = run(sys.executable, '.ci/faults.py', '--light')
    for line in re.findall(r'(?m)^(?:held|FAILED) .*$', r.stdout): check(f'fault: {" ".join(line[7:].split())}', line.startswith('held'))
    check('.ci/faults.py --light', r.returncode == 0 and ' 0 failed' in r.stdout, r.stdout + r.stderr)

def folder_to_target():
    "A folder of pictures becomes a pack and a target of an ImageNet model, in two commands; one line for bad input"
    from PIL import Image
    import numpy as np
    data = f'{TMP.name}/own'
    for c in ('cat', 'newt'):
        for i in range(5):
            Path(data, 'pictures', c).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(f'{data}/pictures/{c}/{i}.jpg')
    r = run('vpstudy_target', 'pack', f'{data}/pictures', f'{data}/pets.parquet', '--json')
    said = json.loads((r.stdout.strip().splitlines() or ['{}'])[-1])
    check('vpstudy_target pack: 8 training and 2 test images', r.returncode == 0 and (said.get('train'), said.get('test'), said.get('classes')) == (8, 2, 2), r.stdout + r.stderr)
    r = papermill(*'-p backbone efficientnet_lite0 -p method dense -p shots 1 -p seeds 0 -p epochs 1 -p modes ilm,lp'.split(), '-p', 'targets', f'{data}/pets.parquet', '-p', 'records', f'{data}/records')
    got = {(d['data']['source'], d['trial']['mode'], d['trial']['size']) for d in records(f'{data}/records').values()}
    check('papermill on it: two records', r.returncode == 0 and got == {('folder', 'ilm', 60), ('folder', 'lp', None)}, r.stderr or got)
    r = run('vpstudy_checkpoint', 'inspect', f'{data}/pets.parquet')
    check('vpstudy_checkpoint inspect of a file that is none: one line, rc 1', r.returncode == 1 and r.stderr.startswith('vpstudy_checkpoint: ') and r.stderr.count('\n') == 1, r.stderr)

def in_jupyter():
    "Notebooks run through nbclient, as JupyterLab would run them, and show their pictures, not only the first"
    code = '''
import nbformat, nbclient
for name in ("31_target", "54_tradeoffs"):
    nb = nbformat.read(f"nbs/{name}.ipynb", 4)
    nb.cells = [c for c in nb.cells if "nbdev_export" not in c.source]
    nbclient.NotebookClient(nb, timeout=300, resources={"metadata": {"path": "nbs"}}).execute()
    print(sum("image/png" in o.get("data", {}) for c in nb.cells for o in c.get("outputs", [])))'''
    r = run(sys.executable, '-c', code)
    check('notebooks run through nbclient and show their pictures, 1 and 4', r.returncode == 0 and r.stdout.split() == ['1', '4'], r.stdout + r.stderr)

def installed():
    "The wheel that the sdist makes, without the checkout and its extras: a study from nothing to its page, in an empty folder"
    made, here = (Path(tempfile.mkdtemp(dir=TMP.name)).resolve() for _ in range(2))
    site, without = made/'site', made/'without' # extras, whose import would be an error
    without.mkdir()
    for extra in ('open_clip', 'dask', 'distributed', 'dask_jobqueue', 'onnx', 'onnxscript'): (without/f'{extra}.py').write_text("raise RuntimeError('an extra was imported')")
    pip = lambda *args: run(sys.executable, '-m', 'pip', *args, '--no-deps', '--no-cache-dir', '--quiet', cwd=made)
    r = run(sys.executable, '-c', 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])', str(made))
    r = pip('wheel', *map(str, made.glob('*.tar.gz')), '--no-build-isolation', '--wheel-dir', str(made)) if r.returncode == 0 else r
    wheel = next(made.glob('*.whl'), None)
    check('an sdist is built, and a wheel of it', wheel, r.stderr)
    held = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('vpstudy/')}
    books = '*.ipynb', 'reports/*.ipynb', 'bench/*.ipynb', 'studies/*.yaml'
    want = {f'vpstudy/{p.relative_to(TOP)}' for what in books for p in (TOP/'nbs').glob(what) if not p.name.startswith(('_', 'out'))}
    want |= {str(p.relative_to(TOP)) for p in (TOP/'vpstudy').rglob('*.py')} | {'vpstudy/py.typed'}
    check('it holds the modules, all notebooks and study files, py.typed, and nothing else', held == want, held ^ want)
    r = pip('install', str(wheel), '--target', str(site))
    files = lambda: {p for p in site.rglob('*') if p.is_file() and p.suffix != '.pyc'}
    before = files()
    alone = lambda *args, **env: run(*map(str, args), cwd=here, **{'PYTHONPATH': f'{without}{os.pathsep}{site}', 'VPSTUDY_DATA': '', **env})
    r = alone(sys.executable, '-c', """
import contextlib, vpstudy
from importlib.metadata import distribution
print(vpstudy.__file__)
for e in distribution('vpstudy').entry_points.select(group='console_scripts'):
    with contextlib.suppress(SystemExit): e.load()(['--version'])""")
    version = re.search(r'(?m)^version = (.*)$', (TOP/'settings.ini').read_text())[1]
    check('it is what is imported, and its five commands say their version', r.stdout.split('\n') == [f'{site}/vpstudy/__init__.py', *[f'vpstudy {version}'] * 5, ''], r.stdout + r.stderr)
    command = site/'bin'/'vpstudy_study'
    r = alone(command, 'plan', 'embedded.yaml')
    check('vpstudy_study plan embedded.yaml: says where things will go, 108 trials, and makes nothing',
          r.stdout.startswith(f'data: {here}/data, figures: {here}/figures\nsettings: 3, trials: 108, done: 0,') and not any(here.iterdir()), r.stdout + r.stderr)
    (here/'smoke.yaml').write_text('report: report_study.ipynb\ncommon: {backbone: glyphs_smoke, method: dense, shots: 1, seeds: 0, epochs: 1, modes: [ilm, lp]}\nsettings: [{}]\n')
    r = alone(command, 'run', 'smoke.yaml')
    check('vpstudy_study run: two trials and their page', r.returncode == 0 and r.stdout.strip().endswith(f'report: {here}/figures/report_study.html') and 'missing: 0' in r.stdout
          and (here/'figures'/'report_study.html').exists(), r.stdout + r.stderr)
    got = records(here/'data'/'records')
    check('whose records are of no checkout', len(got) == 2 and all(d['git'] is None for d in got.values()), got.keys())
    r = alone(command, 'status', 'smoke.yaml', '--json')
    check('vpstudy_study status --json: done, and where on the error output', json.loads(r.stdout or '{}').get('done') == 2 and r.stderr == f'data: {here}/data, figures: {here}/figures\n', r.stdout + r.stderr)
    image = here/'eight.png'
    alone(sys.executable, '-c', 'from PIL import Image; Image.new("L", (9, 9), 200).save("eight.png")')
    r = alone(site/'bin'/'vpstudy', 'predict', next(iter(got), ''), image, '--json')
    check('vpstudy predict with one of them', [len(i['classes']) for i in json.loads(r.stdout or '{}').get('images', [])] == [5], r.stdout + r.stderr)
    check('nothing was written beside the package', files() == before and len(before) > 100, files() ^ before)
    code = 'from vpstudy.base.core import data_path; import os; print(data_path(), os.environ["VPSTUDY_DATA"])'
    said = [alone(sys.executable, '-c', code, PYTHONPATH=str(TOP), VPSTUDY_DATA=v).stdout.split() for v in ('', 'scratch')]
    check('a checkout keeps data/, wherever you stand; a relative VPSTUDY_DATA is read from there, once', said == [[f'{TOP}/data'] * 2, [f'{here}/scratch'] * 2], said)
def what_you_see():
    in_a_log()
    on_a_terminal()

def in_a_log():
    "A study without a terminal: its jobs say what they do, in order; lines of a log name it; nothing is left"
    study, where = Path(TMP.name)/'seen.yaml', Path(TMP.name)/'seen'/'records'
    study.write_text('common: {backbone: glyphs_smoke, shots: [1, 10], seeds: 0, epochs: 200, modes: [ilm, lp]}\nsettings:\n- {method: gmp, sparsity: 0.9}\n')
    p = subprocess.Popen(['vpstudy_study', 'run', str(study), '--records', str(where), '--json'], env={**ENV, 'VPSTUDY_DATA': f'{TMP.name}/seen'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    while p.poll() is None:
        for f in where.glob('.*.now.tmp'):
            try: said.append(f.read_text())
            except OSError: pass # gone already
        time.sleep(.01)
    out, err = p.communicate()
    texts = list(dict.fromkeys(said))
    first = [next((k for k, t in enumerate(texts) if w in t), None) for w in ('source network glyphs_smoke', '\ngmp 0.9', 'trial digits ilm 10 shots seed 0', 'trial digits lp 1 shots seed 0')]
    check('a job says what it does: source network, gmp 0.9, one trial after the other', None not in first and first == sorted(first), (first, texts))
    check('and how far: epochs, the last accuracy', all(any(re.search(w, t) for t in texts) for w in (r'shots seed 0, epoch \d+ of 200', r'shots seed 0.*; last trial 0\.\d')), texts)
    place, *log = err.splitlines()
    check('the first line says where', place.startswith(f'data: {TMP.name}/seen, figures: '), place)
    check('a log names the trial, a rate and an end, and counts the network: 5 of 5', re.search(r'\d/5 \|.* left.*\| trial digits ', err) and any(l.startswith('5/5 |##########|') and 'it' in l for l in log), err)
    check('a few lines, and no chatter', len(log) < 15 and all(re.match(r'\d/5 \||\d\d:\d\d \| ', l) for l in log), err)
    check('one line of JSON on stdout', p.returncode == 0 and out.count('\n') == 1 and json.loads(out)['done'] == 4, out)
    left = [f.name for f in Path(TMP.name, 'seen').rglob('.*')]
    check('nothing is left of what was said', not left, left)

def on_a_terminal():
    "Plain papermill in a terminal: its own bar, and ours below it; the notebook keeps one line"
    import pty
    out, shown = Path(TMP.name)/'terminal.ipynb', b''
    pid, fd = pty.fork()
    if not pid: os.execvpe('papermill', ['papermill', str(TOP/'nbs/run.ipynb'), str(out), *SMOKE, *f'-p epochs 200 -p shots 10 -p seeds 0,1 -p modes ilm -p records {TMP.name}/terminal'.split()], ENV)
    while True:
        try: shown += (more := os.read(fd, 65536))
        except OSError: break # it has ended
        if not more: break
    rc, shown = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors='replace')
    check('papermill in a terminal: below its bar, ours names the trial, its epoch and the end', rc == 0 and 'Executing' in shown and re.search(r'\n\r\d/3 \|[^\r]* left[^\r]*\| trial digits ilm 10 shots seed \d, epoch \d+ of 200', shown), shown[-3000:])
    nb = json.loads(out.read_text())
    lines = [''.join(o['data']['text/plain']) for c in nb['cells'] for o in c.get('outputs', []) if '|####' in ''.join(o.get('data', {}).get('text/plain', ''))]
    check('its notebook keeps one line', len(lines) == 1 and lines[0].startswith('3/3 |##########|') and not any(o.get('name') == 'stderr' for c in nb['cells'] for o in c.get('outputs', [])), lines)

def run_part(f):
    "Run one part and print its lines"
    part.lines, start = [], time.time()
    try: f()
    except Exception as e: check(f.__name__, False, repr(e))
    print(*part.lines, f'       ({f.__name__}: {time.time() - start:.0f} s)', sep='\n', flush=True)

run_part(clean_and_exported) # alone: it may change files that others read
with ThreadPoolExecutor(2) as pool: list(pool.map(run_part, (studies, notebooks, installed, house, own_rooms, ids, counts, what_you_see, kill_and_resume, jobs_elsewhere, faults, bad_parameters, good_parameters, folder_to_target, in_jupyter)))
TMP.cleanup()
print(f'{sum(results)} passed, {len(results) - sum(results)} failed')
sys.exit(not all(results))
