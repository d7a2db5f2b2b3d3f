import pandas as pd
import foedus as fd
from foedus.trees import histogram_boosting

def load(site):
    return fd.Split.from_frame(pd.read_parquet(site.data), label="default", test=fd.after("2025-07-01", on="opened"))

job = fd.Job(histogram_boosting({"objective": "binary:logistic", "max_depth": 6, "eta": 0.1,
                                 "monotone_constraints": {"income": -1}}, bins=256),
             data=load, datasets=("loans",), schema="loans.schema.toml", rounds=300,
             metrics=["auc", "pr_auc", "ks", fd.recall_at(alert_rate=0.01)],
             best="pr_auc", stop=fd.plateau("pr_auc", patience=20), privacy="secagg")

if __name__ == "__main__":
    banks = {name: f"data/{name}.parquet" for name in ("alpha", "beta", "gamma", "delta")}
    result = job.run(sites=banks, seed=7)
    result.save("model.json")                       # xgboost.Booster(model_file="model.json") loads it
    print(fd.compare(job, sites=banks, seeds=range(5), references=("alone", "pooled", "unseen-site")))
