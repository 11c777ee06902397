"""What upstream's files were when the loaders were written: SHA-256 ('' where we never held the
file) and rows.

TOFU's and MMLU's digests are of the files themselves (a folder's: of its files' names and digests);
the other row counts are those that the data sets' cards state.
"""

from collections.abc import Mapping
from types import MappingProxyType

# path below the data set's folder -> (SHA-256, rows)
FileChecksums = Mapping[str, tuple[str, int]]

TOFU: FileChecksums = MappingProxyType(
    {
        "forget01": ("d0047332bd27a489c552659831f4ffff080e2b9b6e063c7c951ac4de9d494a63", 40),
        "forget01_perturbed": (
            "d8d8a80bd25e853b52fad0e3301d86fa4db6bc2b665cd79ea937346186a0944a",
            40,
        ),
        "forget05": ("88542818f98fd6f880ecaea71bc3f3e7a34f959944e5ff1cdef7ea8c5c137173", 200),
        "forget05_perturbed": (
            "7596c863a3f7eafb551a167363826f71a7327f28617a0a533fed06108a50ccdb",
            200,
        ),
        "forget10": ("0044c8c2e70a38be93f62ec6cb1c1cc2a1f55a8df2fb549a4da2da8dde9d92f6", 400),
        "forget10_perturbed": (
            "6fbcb946c57ea1d7b2124cea0e61bf3b5409d1bc10d02368f090109450ed73c7",
            400,
        ),
        "full": ("667baef2f26f781f1328701d8ea54bf25123ff22fb2d98574c96cd991cb54086", 4000),
        "real_authors_perturbed": (
            "a23255383ac75a5fbe5acd57622a03fb9c368954fd7b2428afa152b784d9533a",
            100,
        ),
        "retain90": ("debcf019c41db7b30b62ca6ad41fd8a4bcd29a5b321c21d2961974e308dfca55", 3600),
        "retain95": ("6625bb8e7e01f27a237bd273b961fcf2fb51568157702acdcd934b13398aa2fc", 3800),
        "retain99": ("e699ae5fe685996cd7d0a60cbcbeae717e989a2fd0caf00b4d545ba39ccefc61", 3960),
        "retain_perturbed": (
            "fc69f33bad70d3dca65920bdb54380039e3e8872dd16bbae20c1a839b99533fb",
            400,
        ),
        "world_facts_perturbed": (
            "0e171838040d0ec94b1ce248d891508e85e3b77344370077caa27b61898eb3e1",
            117,
        ),
    }
)

MMLU: FileChecksums = MappingProxyType(
    {
        "dev": ("4b8fa22ff203c219ddfcd4fa16a06ab63710ee41be9896028c62aed0312a56cf", 285),
        "test": ("3cb71f64745d54616c8b1143659f43c5e51fff1e1189fc11bf80a6e35bf99080", 14_042),
    }
)

# the same in news and books
_MUSE_QUESTIONS = {
    "knowmem/forget_qa": ("", 100),
    "knowmem/forget_qa_icl": ("", 10),
    "knowmem/retain_qa": ("", 100),
    "knowmem/retain_qa_icl": ("", 10),
    "privleak/forget": ("", 100),
    "privleak/retain": ("", 100),
    "privleak/holdout": ("", 100),
    "verbmem/forget": ("", 100),
}

MUSE_NEWS: FileChecksums = MappingProxyType(
    {
        "raw/forget": ("", 889),
        "raw/retain1": ("", 1777),
        "raw/retain2": ("", 1778),
        "raw/holdout": ("", 3043),
    }
    | _MUSE_QUESTIONS
    | {f"scal/forget_{k}": ("", n) for k, n in ((1, 889), (2, 1778), (3, 2667), (4, 3554))}
    | {f"sust/forget_{k}": ("", n) for k, n in ((1, 889), (2, 889), (3, 889), (4, 887))}
)

MUSE_BOOKS: FileChecksums = MappingProxyType(
    {
        "raw/forget": ("", 4),
        "raw/retain1": ("", 12),
        "raw/retain2": ("", 13),
        "raw/holdout": ("", 3),
    }
    | _MUSE_QUESTIONS
)

WMDP: FileChecksums = MappingProxyType({"wmdp-bio/test": ("", 1273), "wmdp-cyber/test": ("", 1987)})
NO_CHECKSUMS: FileChecksums = MappingProxyType({})
