"Packaging reads everything from settings.ini, the one place nbdev keeps it."
from configparser import ConfigParser
from pathlib import Path
from shutil import rmtree
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

class with_notebooks(build_py):
    "What the commands execute and read travels along: nbs/ of a checkout becomes vpstudy/nbs/ of a wheel"
    def notebooks(self): return [str(p) for what in ('*.ipynb', 'reports/*.ipynb', 'bench/*.ipynb', 'studies/*.yaml') for p in sorted(Path('nbs').glob(what)) if not p.name.startswith(('.', '_', 'out'))]
    def get_source_files(self): return [*super().get_source_files(), 'settings.ini', *self.notebooks()] # of an sdist

    def run(self):
        super().run()
        if self.editable_mode: return # there they are read from nbs/
        package = Path(self.build_lib)/cfg['lib_path']
        rmtree(package/'nbs', ignore_errors=True) # of an earlier build
        for file in map(Path, self.notebooks()):
            self.mkpath(str((package/file).parent))
            self.copy_file(str(file), str(package/file))

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['vpstudy', 'vpstudy.*']), package_data={'vpstudy': ['py.typed']}, cmdclass=dict(build_py=with_notebooks),
    python_requires='>=' + cfg['min_python'] + ', <3.14', # from then on cells keep annotations where `Parameters` does not look
    install_requires=cfg['requirements'].split(), extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'clip', 'cluster', 'onnx', 'semantic')},
    entry_points={'console_scripts': cfg.get('console_scripts', '').split(), 'nbdev': [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d']},
    zip_safe=False,
)
