"""Reads handwritten digits with a saved model and plain xgboost.

usage: client.py MODEL DIGITS.CSV.GZ
"""
import sys

import numpy
import xgboost


def main(model, data):
    booster = xgboost.Booster()
    booster.load_model(model)
    digits = numpy.loadtxt(data, delimiter=",", dtype=numpy.float32)[4:100:5]  # not trained on
    read = booster.predict(xgboost.DMatrix(digits[:, :-1])).argmax(axis=1)
    print("read   ", *read)
    print("written", *digits[:, -1].astype(int))


main(*sys.argv[1:])
