"""What may go wrong does, and nothing finished is lost and nothing wrong is read. Prints one line a fault, then `N held, N failed`.

`make faults` runs all of it (some ten minutes, Linux; what mounts file systems needs root), `--light` what CI runs."""
import argparse, contextlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path
import psutil

TOP, TMP, ROWS = Path(__file__).resolve().parents[1], Path(tempfile.mkdtemp(prefix='vpstudy-faults-')), []
os.environ.update(VPSTUDY_DATA=str(TMP/'data'), VPSTUDY_THREADS='1', OMP_NUM_THREADS='1', PYTHONPATH=str(TOP))
for k in ('VPSTUDY_PACKS', 'VPSTUDY_WEIGHTS'): os.environ.pop(k, None)
sys.path.insert(0, str(TOP))
from vpstudy.base.core import BadInput
from vpstudy.study.records import KEYS, read_records
from vpstudy.study.run import missing, resolve
from vpstudy.study.archive import read_all

P = dict(backbone='glyphs_smoke', sparsity=.9, shots='1,10', seeds='0,1', modes='flm,lp', epochs=40)
RUN = f'from vpstudy.study.run import resolve, run_setting; import sys; run_setting(*resolve(**{P!r}), sys.argv[1])'

def start(where, **env): return subprocess.Popen([sys.executable, '-c', RUN, str(where)], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
def finish(p): # (rc, its last line)
    out = p.communicate(timeout=600)[0].strip().splitlines()
    return p.returncode, out[-1] if out else ''
def run(where, **env): return finish(start(where, **env))
def kill_tree(p):
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in [*psutil.Process(p.pid).children(recursive=True), psutil.Process(p.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess): child.kill()
    p.wait()
def files(where): return {f: f.read_bytes() for f in Path(where).glob('*/*.json')}
def values(where): return {r['id']: r['metrics'] for r in read_all(where)[0]} # what a report is made of
def fresh(name, full=True): # a records directory of its own, with everything done in it or nothing
    where = TMP/name/'records'
    if full: shutil.copytree(REFERENCE, where)
    return where

def row(fault, where, before, said, ok=True):
    "Note a fault: of what was finished before, how much was lost or changed; of what is read now, how much is wrong"
    now = values(where)
    lost = sum(not f.exists() or f.read_bytes() != content for f, content in before.items())
    wrong = sum(WANT.get(i) != m for i, m in now.items())
    left = [f.name for f in Path(where).rglob('.*.tmp')]
    ok = ok and not lost and not wrong and not left
    ROWS.append(ok)
    print(f'{"held  " if ok else "FAILED"} {fault:52} {len(before):9} {lost:5} {wrong:6} {len(now):5}/{len(WANT)}  {said[:150]}' + (f' left: {left}' if left else ''), flush=True)

def done(where): return set(values(where)) == set(WANT)

def kills(n=25):
    "kill -9 at `n` random moments of runs that go on where the last one stopped, source training included"
    chance, where, hit = random.Random(0), TMP/'kills'/'records', 0
    for k in range(n):
        if k % 5 == 0: shutil.rmtree(TMP/'kills', ignore_errors=True) # from nothing
        p, before = start(where, VPSTUDY_DATA=str(TMP/'kills'/'data'), VPSTUDY_THREADS=str(1 + k % 2)), files(where)
        time.sleep(chance.uniform(.3, 1.1) * CALM)
        hit += p.poll() is None
        kill_tree(p)
        now, (good, bad) = files(where), read_records(where)
        assert not bad, bad
        assert all(now[f] == before[f] for f in before) and all(r['metrics'] == WANT[r['id']] for r in good), 'a finished record changed'
    before = files(where)
    rc, said = run(where, VPSTUDY_DATA=str(TMP/'kills'/'data'))
    row(f'kill -9 at {n} random moments ({hit} in the middle)', where, before, f'then all is done: rc {rc}', rc == 0 and done(where))

def damaged(step=10):
    "A record cut at every `step`-th byte, with NaN, a missing field, another schema: named, not averaged, run again"
    where = fresh('damaged'); setting, trials = resolve(**P)
    path = next(where.glob('*/*.json')); text, others = path.read_text(), {f: c for f, c in files(where).items() if f != path}
    edit = lambda f: json.dumps((lambda d: (f(d), d)[1])(json.loads(text)))
    cases = {f'a record cut at every {step}th byte': [text[:n] for n in range(0, len(text) - 1, step)],
             'a record with NaN, as a metric and elsewhere': [edit(lambda d: d['metrics'].update(ece=float('nan'))), edit(lambda d: d['seconds'].update(train=float('inf')))],
             'a record without any one of its fields': [edit(lambda d: d.pop(k)) for k in KEYS], 'a record of another schema': [edit(lambda d: d.update(schema=0))]}
    for fault, texts in cases.items():
        held = 0
        for t in texts:
            path.write_text(t)
            good, bad = read_all(where)
            held += len(bad) == 1 and str(path) in bad[0] and path.stem not in {r['id'] for r in good} and len(missing(setting, trials, where)) == 1
        row(fault, where, others, f'{held} of {len(texts)} named and left out', held == len(texts))
    rc, said = run(where)
    row('run again after damage', where, others, f'rc {rc}', rc == 0 and done(where))

def two_at_once():
    where = fresh('two', full=False)
    ends = [finish(p) for p in [start(where, VPSTUDY_DATA=str(TMP/'two'/'data')) for _ in range(2)]] # from nothing: both train the source network
    row('two runs at once on one directory', where, {}, f'rc {[rc for rc, _ in ends]}', [rc for rc, _ in ends] == [0, 0] and done(where))

def clock_set_back():
    where = fresh('clock'); path = next(where.glob('*/*.json')); path.unlink()
    for f in [*where.rglob('*'), *(TMP/'data').rglob('*')]: os.utime(f, (time.time() + 3e8,) * 2) # as if written ten years from now
    before = files(where)
    rc, said = run(where)
    row('a clock set back by ten years', where, before, f'rc {rc}; one trial ran', rc == 0 and done(where))

@contextlib.contextmanager
def small_disk(path, size):
    "A file system of its own at `path`"
    path.mkdir(parents=True, exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(path)], capture_output=True).returncode: raise BadInput('no file system can be mounted here (root?): skipped')
    try: yield lambda options: subprocess.run(['mount', '-o', f'remount,{options}', str(path)], check=True)
    finally: subprocess.run(['umount', '-l', str(path)])

def disk_full():
    for what, place, size, want in (('records', 'records', '100k', 'finished trials'), ('caches', 'data/sources', '500k', 'No space left'), ('checkpoints', 'data/checkpoints', '20k', 'No space left')):
        name = f'full-{what}'; where = TMP/name/'records'
        with small_disk(TMP/name/place, size) as again:
            rc, said = run(where, VPSTUDY_DATA=str(TMP/'data' if what == 'records' else TMP/name/'data'))
            before = files(where)
            row(f'disk full while writing {what}', where, before, f'rc {rc}: {said.partition("BadInput: ")[2] or said}', rc != 0 and 'No space left' in said and want in said)
            again('size=200m')
            rc, said = run(where, VPSTUDY_DATA=str(TMP/'data' if what == 'records' else TMP/name/'data'))
            row('  and again with room', where, before, f'rc {rc}', rc == 0 and done(where))

def read_only():
    where = TMP/'readonly'/'records'
    with small_disk(where, '100m') as again:
        shutil.copytree(REFERENCE, where, dirs_exist_ok=True)
        next(where.glob('*/*.json')).unlink()
        again('ro')
        before = files(where)
        rc, said = run(where)
        row('a read-only records directory', where, before, f'rc {rc}: {said.partition("BadInput: ")[2]}', rc != 0 and 'cannot be written' in said)

def memory_limit():
    "No more memory from the first record on: trials fail with their reason or the process dies; then without limit"
    where = fresh('memory', full=False)
    p = start(where)
    while p.poll() is None and not files(where): time.sleep(.02)
    with contextlib.suppress(psutil.NoSuchProcess): psutil.Process(p.pid).rlimit(resource.RLIMIT_AS, (psutil.Process(p.pid).memory_info().vms + 2**16,) * 2)
    rc, said = finish(p)
    before = files(where)
    row('no memory beyond the first trial (RLIMIT_AS)', where, before, f'rc {rc}: {said.partition("BadInput: ")[2] or said}')
    rc, said = run(where)
    row('  and again without a limit', where, before, f'rc {rc}', rc == 0 and done(where))

def two_settings(): # trials take long enough to be interrupted
    study = TMP/'study.yaml'
    study.write_text('common: {backbone: glyphs_smoke, shots: [1, 10], seeds: [0, 1], modes: [flm, lp], epochs: 40}\nsettings:\n- {method: gmp, sparsity: 0.9}\n- {method: dense}\n')
    return study

def command(where, *args): return subprocess.Popen([sys.executable, '-c', 'from vpstudy.commands import main; main()', 'run', str(two_settings()), '--records', str(where), '--json', *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TOP, env={**os.environ, 'VPSTUDY_THREADS': '1'})

def wait_for(where, n, p):
    while p.poll() is None and len(files(where)) < n: time.sleep(.05)

def same_as_here(where): # of both settings; the gmp one has a reference
    found = values(where)
    return len(found) == 16 and all(found[i] == m for i, m in WANT.items())

def workers_killed():
    "Two Dask workers; one is killed, twice"
    where = fresh('dask', full=False)
    p = command(where, '--cluster', 'local', '--workers', '2')
    kept = {}
    for n in (2, 6):
        wait_for(where, n, p)
        workers = [c for c in psutil.Process(p.pid).children(recursive=True) if 'spawn_main' in ' '.join(c.cmdline())] if p.poll() is None else []
        if workers: workers[0].kill()
        kept = {**kept, **{f: c for f, c in files(where).items() if f not in kept}}
    rc, said = finish(p)
    bad = read_records(where)[1]
    lost = sum(f.read_bytes() != c for f, c in kept.items())
    ok = rc == 0 and same_as_here(where) and not bad and not lost
    ROWS.append(ok); print(f'{"held  " if ok else "FAILED"} {"kill -9 of a Dask worker, twice":52} {len(kept):9} {lost:5} {0 if same_as_here(where) else "?":>6} {len(values(where)):5}/16  rc {rc}', flush=True)

def scheduler_killed():
    "A scheduler and two workers of their own; the scheduler is killed in the middle; started again, the study goes on"
    where = fresh('scheduler', full=False)
    def cluster():
        port = random.randint(20000, 40000)
        s = subprocess.Popen([sys.executable, '-m', 'distributed.cli.dask_scheduler', '--host', '127.0.0.1', '--port', str(port), '--no-dashboard'], stderr=subprocess.DEVNULL)
        return s, f'tcp://127.0.0.1:{port}', [subprocess.Popen([sys.executable, '-m', 'distributed.cli.dask_worker', f'tcp://127.0.0.1:{port}', '--nthreads', '1', '--no-dashboard', '--death-timeout', '20'], stderr=subprocess.DEVNULL) for _ in range(2)]
    s, address, workers = cluster(); p = command(where, '--cluster', address)
    wait_for(where, 2, p); s.kill(); s.wait()
    rc, said = finish(p)
    for w in workers: kill_tree(w)
    time.sleep(2)
    before = files(where)
    s, address, workers = cluster(); p = command(where, '--cluster', address)
    again, _ = finish(p)
    for w in [*workers, s]: kill_tree(w)
    lost = sum(f.read_bytes() != c for f, c in before.items())
    ok = rc != 0 and 'scheduler is gone' in said and again == 0 and same_as_here(where) and not lost
    ROWS.append(ok); print(f'{"held  " if ok else "FAILED"} {"kill -9 of the scheduler, then started again":52} {len(before):9} {lost:5} {0 if same_as_here(where) else "?":>6} {len(values(where)):5}/16  rc {rc}: {said[-100:]}', flush=True)

def interrupted():
    "Ctrl-C in the middle: out within seconds, with what is finished"
    where = fresh('ctrl-c', full=False)
    p = command(where)
    wait_for(where, 2, p)
    before, t = files(where), time.time()
    p.send_signal(signal.SIGINT)
    rc, said = finish(p)
    took = time.time() - t
    row('Ctrl-C', where, before, f'rc {rc} after {took:.1f} s: {said}', rc != 0 and took < 10 and 'run again' in said)

def main():
    global REFERENCE, WANT, CALM
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--light', action='store_true', help='what CI runs: under a minute')
    p.add_argument('only', nargs='*', help='names of the functions to run, e.g. two_at_once')
    a = p.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler) # a background job of a shell ignores it, and so would all that it starts
    REFERENCE = TMP/'calm'/'records'
    t = time.time(); rc, said = run(REFERENCE); CALM = time.time() - t
    assert rc == 0, said
    WANT = values(REFERENCE)
    print(f'{"":6} {"fault":52} {"finished":>9} {"lost":>5} {"wrong":>6} {"read":>7}  what was said')
    parts = [globals()[f] for f in a.only] if a.only else [lambda: damaged(100), two_at_once, disk_full] if a.light else [kills, damaged, disk_full, read_only, two_at_once, clock_set_back, memory_limit, interrupted, workers_killed, scheduler_killed]
    for f in parts:
        try: f()
        except Exception as e:
            skipped = 'skipped' in str(e)
            if not skipped: ROWS.append(False)
            print(f'{"-     " if skipped else "FAILED"} {getattr(f, "__name__", "")}: {type(e).__name__}: {e}', flush=True)
    shutil.rmtree(TMP, ignore_errors=True)
    print(f'{sum(ROWS)} held, {len(ROWS) - sum(ROWS)} failed')
    sys.exit(not all(ROWS))

if __name__ == '__main__': main()
