"Real sentences with labels: the documentation of web services that botocore ships (Apache License 2.0)."
import gzip
import json
import re
from pathlib import Path

import numpy as np


def documented(service: str) -> list[str]:
    "The first sentence of each of a service's operations; the service's own name is not in it."
    import botocore
    file = max((Path(botocore.__file__).parent/"data"/service).glob("*/service-2.json.gz"))
    texts = (
        re.sub(r"\s+|<[^>]+>", " ", o.get("documentation", ""))
        for o in json.loads(gzip.open(file).read())["operations"].values()
    )
    firsts = {re.split(r"(?<=[.!?]) ", " ".join(t.split()))[0] for t in texts}
    return [re.sub(service, "it", t, flags=re.I) for t in sorted(firsts) if 20 < len(t) < 250]


def sentences(n: int, services=("connect", "glue", "iam", "iot", "quicksight", "rds", "sagemaker")) -> list[str]:
    "As many sentences, in no order."
    found = sorted({t for s in services for t in documented(s)})
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:n]]
