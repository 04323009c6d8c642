#!/bin/sh
# usage: train.sh -thread N
#
# The recipe of the langid model. fastText repeats its bytes with one thread;
# with more, the threads race for the same weights.
set -eu

# Build and test below the current directory's own names when run by hand.
in=${LANGID_IN:-/in}
out=${LANGID_OUT:-/out}

fasttext supervised "$@" -verbose 0 \
	-input "$in/dataset/corpus/train.txt" -output "$out/langid" \
	-dim 16 -epoch 5 -lr 0.5 -minn 2 -maxn 4 -bucket 50000 -minCount 5
rm "$out/langid.vec"

fasttext test "$out/langid.bin" "$in/dataset/corpus/valid.txt"
