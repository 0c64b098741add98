"""Sentences to speak: a small grammar of everyday English.

Some words sound alike (BY and BUY, SEA and SEE) or nearly so
(BOAT and COAT, HID and HIDE): the sentence decides.

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
        "can you {do} {thing} {place}",
        "please {do} {thing} {place}",
        "give {them} {thing} and {thing}",
        "{open} the {door} {side} of the {landmark}",
    ],
    "past": [
        "last night",
        "yesterday",
        "before dinner",
        "after the rain",
        "last {day}",
    ],
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
    "did": "found lost sold painted carried bought hid".split(),
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
    "count": ["some", "{number}", "{number}"],
    "number": "two three four five six seven eight".split(),
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
    'MY SISTER SOLD A NEW TICKET AFTER THE RAIN'
    """

    def choose(match):
        """One of the texts for a name in braces."""
        return expand(rng.choice(GRAMMAR[match[1]]))

    def expand(text):
        """The text with every name in braces replaced."""
        return re.sub(r"{(\w+)}", choose, text)

    return expand("{sentence}").upper()


# Everyday German, with every letter that English lacks.
GERMAN = (
    "wo hast du den schlüssel gefunden",
    "meine schwester hat gestern ein blaues boot gekauft",
    "der alte mann sitzt am fluss",
    "bitte öffnen sie das fenster",
    "wir treffen uns am dienstag auf dem markt",
    "die straße ist heute gesperrt",
    "das kind zählt bis zehn",
    "er hat drei äpfel und zwei eier mitgebracht",
    "nach dem regen war das gras ganz nass",
    "kannst du mir bitte den brief vorlesen",
    "sie fährt jeden morgen mit dem zug",
    "können wir später noch einmal darüber sprechen",
)
