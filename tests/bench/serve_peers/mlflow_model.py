"A pyfunc model for `mlflow models serve`: `python mlflow_model.py FOLDER` saves it."
import sys
from pathlib import Path

import mlflow.pyfunc


class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        import common
        self.common = common

    def predict(self, context, model_input):
        rows = [self.common.check(r) for r in model_input.to_dict("records")]
        return [{"score": s} for s in self.common.predict(rows)]


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    mlflow.pyfunc.save_model(sys.argv[1], python_model=Model(), pip_requirements=[],
                             code_paths=[str(here/"common.py")])
