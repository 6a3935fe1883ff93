from cmpta_lib.data.corpus import Sample as Sample
from cmpta_lib.registry import register as register
from cmpta_lib.study.study import Study as Study
from cmpta_lib.study.trained import load as load
from cmpta_lib.study.trained import plain as plain
from cmpta_lib.study.trained import train as train
from data_prep.public_pickles import read_folder as read_folder

__version__: str
