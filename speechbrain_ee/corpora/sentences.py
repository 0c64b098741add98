"""Sentences to speak: a small grammar of everyday English.

Some words sound alike (TWO and TO, BY and BUY, SEA and SEE) or nearly so
(FIFTEEN and FIFTY, BOAT and COAT): the sentence decides.

Authors
 * SpeechBrain-EE contributors 2026
"""

import re

# A word in braces stands for a choice from the list of that name. Lists repeat
# what shall come more often.
GRAMMAR = {
    "sentence": [
        "{subject} {did} {thing}",
        "{subject} {did} {thing} {place}",
        "{subject} {did} {thing} {past}",
        "{past} {subject} {did} {thing}",
        "last {day} {pronoun} {did} {thing} {place}",
        "{pronoun} {did} {thing} and {thing}",
        "where did {subject} {do} {thing}",
        "when will {subject} {do} {thing}",
        "how many {things} did {subject} {do} {past}",
        "why isn't {person} {place}",
        "do you know who {did} {thing}",
        "can you {do} {thing} {place}",
        "is that {owner} {object}",
        "please {do} {thing} {place}",
        "don't forget to {do} {thing} {future}",
        "give {them} {thing} and {thing}",
        "turn {side} at the {landmark}",
        "turn {side} {place} and wait for {them}",
        "{open} the {door} {side} of the {landmark}",
        "the {vehicle} leaves at {time} {future}",
        "meet {them} at {time} {place}",
        "it costs {number} dollars and {number} cents",
        "the number is {digits}",
        "the number of the {landmark} is {digits}",
        "we'll come back {future} at {time}",
    ],
    "past": [
        "last night",
        "yesterday",
        "before dinner",
        "after the rain",
        "last {day}",
    ],
    "future": ["today", "tonight", "in the morning", "next week", "on {day}"],
    "day": ["monday", "tuesday", "thursday", "friday", "sunday"],
    "subject": ["{pronoun}", "{person}", "{person}"],
    "pronoun": ["she", "he", "they", "we"],
    "person": [
        "the old man",
        "my sister",
        "his brother",
        "the young doctor",
        "the teacher's son",
        "our neighbor",
        "her father",
        "the captain",
        "that tall woman",
        "the farmer's daughter",
    ],
    "did": [
        "found",
        "lost",
        "sold",
        "painted",
        "carried",
        "bought",
        "hid",
        "didn't {do}",
        "wanted to {do}",
        "forgot to {do}",
    ],
    "do": "find hide sell paint carry buy see bring leave take".split(),
    "thing": [
        "a {adjective} {object}",
        "the {adjective} {object}",
        "an {vowel_adjective} {object}",
        "{owner} {object}",
        "{owner} {adjective} {object}",
        "{count} {things}",
        "{count} {adjective} {things}",
    ],
    "owner": ["my", "his", "her", "our"],
    "adjective": "red broken little heavy green blue white new cheap".split(),
    "vowel_adjective": ["empty", "old", "ugly"],
    "object": (
        "boat coat goat horse lamp map letter ladder candle kettle bottle "
        "basket ticket"
    ).split(),
    "things": (
        "apples boxes boats coats letters tickets candles bottles eggs keys "
        "chairs"
    ).split(),
    "count": ["some", "{small}", "{small}", "{teen}", "{tens}"],
    "small": "two three four five six seven eight nine ten".split(),
    "teen": "eleven twelve thirteen fourteen fifteen".split(),
    "tens": "twenty thirty forty fifty".split(),
    "number": ["{small}", "{teen}", "{tens}", "{tens} {small}"],
    "digits": ["{digit} {digit} {digit}", "{digit} {digit} {digit} {digit}"],
    "digit": "zero one two three four five six seven eight nine".split(),
    "time": [
        "{hour} o'clock",
        "{hour} fifteen",
        "{hour} thirty",
        "half past {hour}",
        "a quarter to {hour}",
    ],
    "hour": "one two three four five six seven eight nine ten eleven".split(),
    "place": [
        "near the river",
        "under the bridge",
        "behind the {landmark}",
        "in the garden",
        "by the sea",
        "on the table",
        "at the {landmark}",
        "between the trees",
        "across the street",
    ],
    "landmark": ["station", "market", "church", "school", "house", "hotel"],
    "them": ["him", "us", "them", "me"],
    "side": ["left", "right"],
    "open": ["open", "close", "lock"],
    "door": ["door", "window", "gate"],
    "vehicle": ["train", "bus", "ship", "ferry"],
}


def random_sentence(rng):
    """Draws a sentence from the built-in grammar.

    Arguments
    ---------
    rng : random.Random
        The source of randomness.

    Returns
    -------
    str
        Words in upper case, with no punctuation but the apostrophe.

    Example
    -------
    >>> import random
    >>> random_sentence(random.Random(1))
    'LAST SUNDAY SHE CARRIED A NEW TICKET BETWEEN THE TREES'
    """

    def choose(match):
        """One of the texts for a name in braces."""
        return expand(rng.choice(GRAMMAR[match[1]]))

    def expand(text):
        """The text with every name in braces replaced."""
        return re.sub(r"{(\w+)}", choose, text)

    return expand("{sentence}").upper()
