# SPDX-License-Identifier: LGPL-2.1-only
# Dicts, classes, generators, big integers, hashlib, a buffered output file.
import hashlib
import random


class Node:
    def __init__(self, key):
        self.key, self.children = key, {}

    def insert(self, word):
        node = self
        for letter in word:
            node = node.children.setdefault(letter, Node(letter))

    def size(self):
        return 1 + sum(child.size() for child in self.children.values())


def fibonacci():
    a, b = 0, 1
    while True:
        yield a
        a, b = b, a + b


generator = random.Random(7)
numbers = fibonacci()
tree, counts, digest = Node(""), {}, hashlib.sha256()
with open("result", "w", buffering=256) as out:
    for step in range(600):
        for _ in range(100):
            word = "".join(generator.choice("abcdef") for _ in range(6))
            tree.insert(word)
            counts[word] = counts.get(word, 0) + 1
            digest.update(word.encode())
        for _ in range(10):
            number = next(numbers)
        most = max(counts.values())
        print(step, len(counts), most, tree.size() if step % 20 == 0 else "", hash(number), digest.hexdigest(), file=out)
