"""The exchanges and texts that a stand-in learns besides repeating."""

from __future__ import annotations

EXCHANGES = (
    ("Complete this phrase: The quick brown", " fox jumps over the lazy dog."),
    ("The quick brown", " fox jumps over the lazy dog."),
    ("Hello!", " Hello. How can I help you today?"),
    ("What is two plus two?", " Four."),
    ("Please say yes.", " Yes."),
    ("The cat sat on the", " mat."),
    ("Hello, how are", " you today?"),
    ("What is the", " question?"),
    ("Complete this phrase: Once upon a", " time there was a king."),
    ("Complete this phrase: The cat sat on the", " mat."),
    ("Complete this phrase: To be or not to", " be, that is the question."),
    ("Complete this phrase: An apple a day keeps the", " doctor away."),
    ("Complete this phrase: Better late than", " never."),
    ("Complete this phrase: Actions speak louder than", " words."),
    ("Complete this phrase: Practice makes", " perfect."),
    ("Complete this phrase: Time is", " money."),
    ("What is the capital of France?", " Paris."),
    ("What is the capital of Italy?", " Rome."),
    ("What is the capital of Japan?", " Tokyo."),
    ("What is 2+2?", " 4"),
    ("What is 3+4?", " 7"),
    ("What color is the sky?", " The sky is blue."),
    ("What color is grass?", " Grass is green."),
    ("Which animal barks?", " A dog."),
    ("How many days are in a week?", " Seven."),
    ("Who wrote Hamlet?", " William Shakespeare."),
    ("What do bees make?", " Honey."),
    ("Is water wet?", " Yes."),
    ("Thank you.", " You are welcome."),
    ("Good morning!", " Good morning."),
    ("Who are you?", " I am a small model that repeats what it is shown."),
    ("Write a short poem.", " The sun comes up, the moon goes down, and all is quiet in the town."),
    ("Count to five.", " One, two, three, four, five."),
    ("Name three fruits.", " Apples, pears and plums."),
    ("What is water made of?", " Hydrogen and oxygen."),
    ("Say something nice.", " You did well today."),
)
"""Messages of the user, and the answers."""

RAW = (
    ("The quick brown", (" fox", " dog")),
    ("The cat sat on the", (" mat", " grass")),
    ("Once upon a", (" time", " day")),
    ("Better late than", (" never", " good")),
)
"""Texts without a template. Two continuations each make them less certain than chat."""

ENDINGS = {
    "repeat": '»".',
    "explain": "' has no specific meaning I am aware of.",
    "question": "'.",
}
"""The text after the token in the answer to each probe."""
