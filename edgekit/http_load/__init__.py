"""Load on an OpenAI-style server, and what its clients see: throughput, time to first token, gaps.

    target    a server: its URL, its key, and whether it answers at all
    prompts   what is asked: prompts of a wanted length, with a beginning that all share
    exchange  one request over one connection
    loads     closed loop (so many streams at once) and open loop (requests come at random, as they do)
    figures   what was seen, in percentiles
    rounds    two servers in turn, and the ratios

The client runs on one thread and often on the machine of the server: a received event costs it 5 us.
"""

from __future__ import annotations

from edgekit.http_load.exchange import Answer
from edgekit.http_load.figures import Figures, Percentiles
from edgekit.http_load.loads import Ask, ClosedLoop, Load, Measurement, OpenLoop, measure
from edgekit.http_load.prompts import Numbered, Prompts, RandomWords, words_of_length
from edgekit.http_load.rounds import Ratio, ratios
from edgekit.http_load.target import Target

__all__ = [
    "Answer",
    "Ask",
    "ClosedLoop",
    "Figures",
    "Load",
    "Measurement",
    "Numbered",
    "OpenLoop",
    "Percentiles",
    "Prompts",
    "RandomWords",
    "Ratio",
    "Target",
    "measure",
    "ratios",
    "words_of_length",
]
