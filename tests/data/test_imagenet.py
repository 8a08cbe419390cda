"""The classes of ImageNet: the ids of TFDS in its order, and how names are read from WordNet."""

from pathlib import Path

import tensorflow_datasets as tfds

from flatten_jax.data import imagenet


def test_ids_are_those_of_tfds_in_its_order():
    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert list(imagenet.class_names()) == labels.read_text().split()


def test_names_that_are_shared_are_told_apart_by_their_ids():
    names = imagenet.class_names()
    assert names["n02012849"] == names["n03126707"] == "crane"
    assert (names["n03710637"], names["n03710721"]) == ("maillot", "maillot, tank suit")


def test_names_are_the_first_words_of_wordnets_lines():
    lines = [
        "  1 This software and database is being provided to you, the LICENSEE, by  \n",
        "00000100 05 n 03 house_cat 0 Felis_catus 1 mog 0 004 @ 02000954 n 0000 | an animal  \n",
        "00000200 05 n 01 crane 0 001 @ 02000954 n 0000 | a bird  \n",
        "00000300 05 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 02000954 n 0000 | letters  \n",
    ]
    wnids = ["n00000200", "n00000100", "n00000300"]
    expected = {"n00000200": "crane", "n00000100": "house cat, Felis catus", "n00000300": "a, b"}
    assert imagenet.names_of_wnids(wnids, lines) == expected
