"Everything about the package stands in settings.ini, which nbdev reads too."
from configparser import ConfigParser
from setuptools import find_packages, setup

config = ConfigParser(delimiters="=")
config.read("settings.ini", encoding="utf-8")
s = config["DEFAULT"]
setup(name=s["lib_name"], version=s["version"], description=s["description"], author=s["author"], license=s["license"],
      packages=find_packages(include=["hybrid_nb*"]), python_requires=f">={s['min_python']}",
      install_requires=s["requirements"].split(), extras_require={extra: s[f"{extra}_requirements"].split() for extra in ("dev", "tests", "cluster", "docs")},
      entry_points={"console_scripts": s["console_scripts"].split()})
