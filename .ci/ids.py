"""Ids are a contract: every setting and trial id of three studies, as they were before anything moved, in .ci/ids/STUDY.txt.
`python .ci/ids.py` compares; `python .ci/ids.py --write` makes the files anew, which a note has to explain."""
import sys
from pathlib import Path
from vpstudy.base.identity import Setting, Trial
from vpstudy.study.plan import plan_study
from vpstudy.study.archive import read_archive

TOP = Path(__file__).resolve().parents[1]
STUDIES = 'embedded_full', 'imagenet_small', 'modes'

def golden(study): return TOP/'.ci'/'ids'/f'{study}.txt'

def read(path) -> dict: # setting id -> its trials' ids
    "A golden file: a setting a line, its trials indented below it"
    out = {}
    for line in path.read_text().splitlines():
        if line.startswith(' '): out[last].append(line.strip())
        else: out[last := line] = []
    return {s: {*ids} for s, ids in out.items()}

def planned(study) -> tuple: # (setting id -> ids, why some are not known)
    "As today's code makes them of the study file; what is not on this machine is left out and named"
    rows = read_archive(TOP/'data'/'results'/f'{study}.parquet')[0]
    names = {r['record']['trial']['target'] for r in rows} | {r['record']['setting']['images'] for r in rows} - {None}
    plan, out = plan_study(TOP/'nbs'/'studies'/f'{study}.yaml', known=names), {}
    for p in plan:
        if p.setting: out.setdefault(p.setting.id, set()).update(p.ids)
    return out, sorted({p.unresolved for p in plan if p.unresolved})

def recorded(study) -> dict: # setting id -> ids
    "As today's code makes them of the fields that the records of the committed table hold"
    out = {}
    for r in read_archive(TOP/'data'/'results'/f'{study}.parquet')[0]:
        setting = Setting(**r['record']['setting'])
        out.setdefault(setting.id, set()).add(Trial(**r['record']['trial']).id(setting))
    return out

def differing(study) -> tuple: # (ids that are not in the golden file, ids of it that should be there and are not, how many were compared, what is not here)
    "Today's ids against the golden file"
    want = {(s, i) for s, ids in read(golden(study)).items() for i in ids}
    (made, absent), known = planned(study), recorded(study)
    have = {(s, i) for found in (made, known) for s, ids in found.items() for i in ids}
    ours = {(s, i) for s, i in want if s in made or i in known.get(s, ())} # of a setting that cannot be planned here, what has a record
    return sorted(have - want), sorted(ours - have), len(have), absent

def write(study):
    made, absent = planned(study)
    if absent: sys.exit(f'{study}: not all ids are known here: {"; ".join(absent)}')
    golden(study).parent.mkdir(exist_ok=True)
    golden(study).write_text(''.join(f'{s}\n' + ''.join(f'  {i}\n' for i in sorted(made[s])) for s in sorted(made)))

if __name__ == '__main__':
    for study in STUDIES:
        if '--write' in sys.argv: write(study)
        new, lost, n, absent = differing(study)
        print(f'{study}: {n} ids compared, {len(new)} new, {len(lost)} lost', *new[:3], *lost[:3], *absent, sep='\n  ')
