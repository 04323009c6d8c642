"""Trains a classifier of handwritten digits and saves it in both of XGBoost's formats.

usage: train.py DIGITS.CSV.GZ OUT THREADS SEED

Every fifth digit is kept for validation. Each tree sees a random half of the
others; SEED "none" leaves the choice to chance, which is what happens when
nobody thinks of it.
"""
import random
import sys

import numpy
import xgboost


def main(data, out, threads, seed):
    digits = numpy.loadtxt(data, delimiter=",", dtype=numpy.float32)
    held = numpy.arange(len(digits)) % 5 == 4
    train, valid = (xgboost.DMatrix(d[:, :-1], label=d[:, -1], nthread=int(threads)) for d in (digits[~held], digits[held]))
    params = {
        "objective": "multi:softprob", "num_class": 10, "tree_method": "hist", "max_depth": 4, "eta": 0.3, "subsample": 0.5,
        "nthread": int(threads), "seed": random.randrange(2**31) if seed == "none" else int(seed),
    }
    booster = xgboost.train(params, train, 40)
    wrong = numpy.count_nonzero(booster.predict(valid).argmax(axis=1) != valid.get_label())
    print(f"{wrong} of {valid.num_row()} digits wrong")
    booster.save_model(f"{out}/digits.ubj")
    booster.save_model(f"{out}/digits.json")


main(*sys.argv[1:])
