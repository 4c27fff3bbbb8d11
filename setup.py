"Everything about the package stands in settings.ini, which nbdev reads too."
import shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters="=")
config.read("settings.ini", encoding="utf-8")
s = config["DEFAULT"]


class build_with_templates(build_py):
    "Puts the notebooks that a sweep and a report execute into the built package; a development install reads reports/."
    def run(self):
        super().run()
        if getattr(self, "editable_mode", False): return
        folder = Path(self.build_lib)/s["lib_path"]/"templates"
        folder.mkdir(parents=True, exist_ok=True)
        for name in s["templates"].split(): shutil.copy(Path("reports", name), folder)


setup(
    name=s["lib_name"], version=s["version"], description=s["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=s["author"], license="Apache-2.0", license_files=["LICENSE"], keywords=s["keywords"].split(),
    url=s["git_url"], project_urls=dict(Documentation=f"{s['doc_host']}{s['doc_baseurl']}"),
    packages=find_packages(include=[f"{s['lib_name']}*"]), package_data={"": ["*.css", "*.js"]},
    cmdclass=dict(build_py=build_with_templates),
    python_requires=f">={s['min_python']}", install_requires=s["requirements"].split(),
    extras_require={key.removesuffix("_requirements"): s[key].split() for key in s if key.endswith("_requirements")},
    entry_points=dict(console_scripts=s["console_scripts"].split()))
