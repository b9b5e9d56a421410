"""What callers say: of each intent its wordings, and the stories that some tell first.

The last two wordings of an intent and the last stories are held out for evaluation.
"""

from __future__ import annotations

import re

import numpy as np

_HELD_OUT = 2
# What callers put before and after any wording.
_OPENINGS = (
    *("So,", "And", "Okay,", "Well,", "Hi,", "Hello,", "Sorry,", "Please,", "Now,", "Good,"),
    *("Excuse me,", "One more thing,", "Can you help me?", "I have a question.", "Alright,"),
)
_ENDINGS = ("please", "then", "now", "today", "tonight", "again", "for me", "thank you", "sir")
_OPENING_SHARE, _ENDING_SHARE = 0.35, 0.2

SHARED: dict[str, str] = {
    "hello": (
        "Hey there. Good day. Hi, hello. Hello, good evening. Good morning to you. Hello, "
        "hello. Well, hello. Hey, good afternoon. Hello. Hi there. Good morning. Hey, hello. "
        "Good evening. Hi, good afternoon. Hello there. Hi, good morning."
    ),
    "name": (
        "Sorry, who are you? Do you have a name? What should I call you? What was your name? "
        "Please tell me your name. Who is this? So who are you? What are you called? Can I "
        "know your name? Could you tell me your name? What is your name? What's your name, "
        "please? Who are you? Can you tell me your name? May I ask your name? Who am I "
        "talking to? Tell me your name. Sorry, what is your name?"
    ),
    "thanks": (
        "Thanks so much. Thank you, that helps. Wonderful, thank you. Perfect, thanks. "
        "Alright, thank you very much. Cool, thanks. Good, thank you. Thanks for that. Thank "
        "you. Thanks a lot. Thank you very much. Thanks. Great, thank you. Many thanks. Thank "
        "you so much. Okay, thanks."
    ),
    "bye": (
        "Okay, bye. Good night. See you. Well, goodbye. Have a good day, bye. Take care, "
        "goodbye. Thanks, bye. Alright, see you later. Goodbye. Bye bye. See you later. Okay, "
        "goodbye. Bye for now. See you soon, bye. Goodbye then. Bye, see you."
    ),
    "how_are_you": (
        "Hi, how are you? How are things? How do you feel? How do you feel today? How is your "
        "day? Hello, how are you doing? And how are you doing? How have you been? Are you "
        "okay? How are you? How are you today? How are you doing? And how are you? How do you "
        "do? Are you well today? So how are you? How are you doing today?"
    ),
}
RESTAURANT: dict[str, str] = {
    "menu": (
        "What do you serve? What food do you have? What can I eat here? Please tell me the "
        "menu. Can you tell me what is on the menu? What can I get here? What do you have to "
        "eat? Could you tell me the menu? Which dishes are there? So what's on the menu? What "
        "is on the menu? What do you have? Can I hear the menu? What can I order? What dishes "
        "do you have? Tell me the menu, please. What's on your menu? Could I hear the menu, "
        "please?"
    ),
    "price_classic": (
        "How expensive is the classic? Tell me how much the classic is. What do I pay for the "
        "classic? How many dollars is the classic? And the classic, how much is it? Can you "
        "tell me the price of the classic? So how much is the classic? What would the classic "
        "cost? How much is the classic? What does the classic cost? What is the price of the "
        "classic one? How much for the classic? Tell me the price of the classic. How much "
        "does the classic cost? What's the price of the classic? And how much is the classic "
        "one?"
    ),
    "price_spicy": (
        "How expensive is the spicy? Tell me how much the spicy is. What do I pay for the "
        "spicy? How many dollars is the spicy? And the spicy, how much is it? Can you tell me "
        "the price of the spicy? So how much is the spicy? What would the spicy cost? How "
        "much is the spicy? What does the spicy cost? What is the price of the spicy one? How "
        "much for the spicy? Tell me the price of the spicy. How much does the spicy cost? "
        "What's the price of the spicy? And how much is the spicy one?"
    ),
    "order_classic": (
        "I'd have the classic, please. I would like to order the classic. Let me have the "
        "classic, please. The classic for me, please. I will have the classic. Can I get a "
        "classic, please? I'll have one classic. Make it a classic, please. Could I get the "
        "classic? So I'll take the classic. I would like the classic, please. Can I have the "
        "classic? I'll take the classic. One classic, please. Give me a classic. I want the "
        "classic one. I'd like one classic. Could I have the classic, please?"
    ),
    "order_spicy": (
        "I'd have the spicy, please. I would like to order the spicy. Let me have the spicy, "
        "please. The spicy for me, please. I will have the spicy. Can I get a spicy, please? "
        "I'll have one spicy. Make it a spicy, please. Could I get the spicy? So I'll take "
        "the spicy. I would like the spicy, please. Can I have the spicy? I'll take the "
        "spicy. One spicy, please. Give me a spicy. I want the spicy one. I'd like one spicy. "
        "Could I have the spicy, please?"
    ),
    "in_classic": (
        "What do I get in the classic? What goes into the classic? And what is in the "
        "classic? Can you tell me what is in the classic? What's in the classic? What does "
        "the classic come with? Is there egg in the classic? What is inside the classic one? "
        "What is in the classic? What is the classic made of? What comes with the classic? "
        "What's inside the classic? Tell me what is in the classic. What do you put in the "
        "classic? What's in the classic one? So what is in the classic?"
    ),
    "in_spicy": (
        "What do I get in the spicy? What goes into the spicy? And what is in the spicy? Can "
        "you tell me what is in the spicy? What's in the spicy? What does the spicy come "
        "with? Is there egg in the spicy? What is inside the spicy one? What is in the spicy? "
        "What is the spicy made of? What comes with the spicy? What's inside the spicy? Tell "
        "me what is in the spicy. What do you put in the spicy? What's in the spicy one? So "
        "what is in the spicy?"
    ),
    "drinks": (
        "What can I drink? What is there to drink? Which drinks are there? And what drinks do "
        "you have? Can I have a coffee, please? Do you have tea? What do you have to drink? "
        "Do you have something to drink? Tell me the drinks, please. I would like a drink. "
        "What drinks do you have? Do you have coffee? Can I get a drink? Is there anything to "
        "drink? Do you sell tea or coffee? I want something to drink. Do you have any drinks? "
        "Could I get something to drink?"
    ),
    "hours": (
        "How long are you open? Are you still open? Until when are you open? And when do you "
        "close? Can you tell me your opening hours? How long are you open tonight? When does "
        "the restaurant close? What time do you open? So when are you open? When do you "
        "close? When are you open? What are your opening hours? How late are you open? What "
        "time do you close? Are you open tonight? What time are you open? When do you close "
        "tonight?"
    ),
    "location": (
        "Where can I find you? How do I get to you? Where is your place? And where are you? "
        "Can you tell me your address? Where exactly are you? Which street is it? What is the "
        "address of the restaurant? How do I get there? Where are you? What is your address? "
        "Where is the restaurant? How do I find you? Which street are you on? Tell me the "
        "address, please. What's your address? So where is your restaurant?"
    ),
    "card": (
        "Can I pay in cash? Can I use my card? Do you take cash? And how can I pay? Is a card "
        "okay? Do you accept cards? Could I pay by card? Can I use a credit card? How do I "
        "pay? Can I pay by card? Do you take cards? Is cash okay? How can I pay? Do you "
        "accept credit cards? Can I pay with cash? Can I pay with a card? Do you take credit "
        "cards?"
    ),
    "wait": (
        "How long will I have to wait? When can I pick it up? Will it take long? How soon is "
        "it ready? And how long will it take? How many minutes do I have to wait? When is it "
        "ready? Do I have to wait long? Can you tell me how long it takes? How long will it "
        "take? When will it be ready? How long do I have to wait? Is it ready soon? How many "
        "minutes will it take? How long is the wait? How long does it take? When will my food "
        "be ready?"
    ),
}
TEACHER: dict[str, str] = {
    "sky": (
        "Why is the sky so blue? What gives the sky its blue color? And why is the sky blue? "
        "I want to know why the sky is blue. Could you explain why the sky is blue? Is the "
        "sky really blue? Why is it that the sky is blue? How does the sky get blue? Why is "
        "the sky blue? What makes the sky blue? Can you explain the blue sky? How come the "
        "sky is blue? Tell me why the sky is blue. Why does the sky look blue? So why is the "
        "sky blue? Can you tell me why the sky is blue?"
    ),
    "planets": (
        "Tell me the number of planets. How many planets are around the sun? And how many "
        "planets are there? I want to know how many planets there are. Do you know how many "
        "planets there are? How many planets are there in all? Can you tell me how many "
        "planets we have? How many planets does the sun have? How many planets are there? How "
        "many planets do we have? What is the number of planets? Tell me how many planets "
        "there are. Can you count the planets? How many planets go around the sun? So how "
        "many planets are there? How many planets are there around the sun?"
    ),
    "gravity": (
        "What does gravity do? Why does everything fall down? And what is gravity? I want to "
        "know what gravity is. Can you tell me about gravity? What makes things fall? Tell me "
        "what gravity is. Explain gravity to me, please. What is gravity? Why do things fall "
        "down? Can you explain gravity? How does gravity work? Tell me about gravity. Why do "
        "apples fall? So what is gravity? Could you explain gravity to me?"
    ),
    "light": (
        "How fast does light go? What speed does light have? And how fast is light? I want to "
        "know how fast light is. Do you know the speed of light? Tell me how fast light is. "
        "How fast can light travel? Could you tell me how fast light is? How fast is light? "
        "What is the speed of light? How fast does light travel? Tell me the speed of light. "
        "What's the speed of light? How quick is light? So how fast is light? Can you tell me "
        "the speed of light?"
    ),
    "language": (
        "How can I learn English? What is a good way to learn a language? And how do I learn "
        "a language? I would like to learn French. How can I learn a new language? Tell me "
        "how to learn a language. Could you help me learn a language? How do people learn a "
        "language? How can I learn a language? How do I learn English? What helps to learn a "
        "language? I want to learn a language. Can you help me learn French? How should I "
        "study a language? How do I learn a new language? What is the best way to learn a "
        "language?"
    ),
    "exam": (
        "How do I get ready for my exam? My exam is tomorrow. And how do I study for my exam? "
        "What helps before an exam? Can you help me with my exam? I have to pass an exam. How "
        "do I pass my exam? I need help with an exam. I have an exam tomorrow. How do I study "
        "for an exam? I am afraid of my exam. How can I pass the exam? What should I do "
        "before an exam? Help me with my exam. I have an exam soon. How should I study for my "
        "exam?"
    ),
    "ocean": (
        "What is the biggest ocean? Which ocean is the largest? And what is the largest "
        "ocean? I want to know the biggest ocean. Do you know the largest ocean? Tell me "
        "which ocean is the biggest. Could you name the largest ocean? What is the largest of "
        "the oceans? What is the largest ocean? Which ocean is the biggest? What's the "
        "biggest ocean? Tell me the largest ocean. Which is the largest ocean? Name the "
        "biggest ocean. So what is the largest ocean? Can you tell me the biggest ocean?"
    ),
    "france": (
        "Which city is the French capital? And what is the capital of France? I want to know "
        "the capital of France. Tell me which city is the capital of France. Is Paris the "
        "capital of France? What is France's capital? Could you tell me the capital of "
        "France? Which is the capital of France? What is the capital of France? Which city is "
        "the capital of France? Tell me the capital of France. What's the capital of France? "
        "Name the capital of France. Do you know the capital of France? So what is the "
        "capital of France? Can you name the capital of France?"
    ),
    "rainbow": (
        "How is a rainbow made? Where do rainbows come from? And what is a rainbow? I want to "
        "know what makes a rainbow. Could you explain rainbows? Tell me how a rainbow forms. "
        "Why is there a rainbow? How do rainbows form? What is a rainbow? How does a rainbow "
        "form? Why do we see rainbows? What makes a rainbow? Tell me about rainbows. Can you "
        "explain the rainbow? So how does a rainbow form? Can you tell me what makes a "
        "rainbow?"
    ),
    "water": (
        "How hot does water have to be to boil? And when does water boil? I want to know when "
        "water boils. Do you know when water boils? Tell me the boiling point of water. At "
        "what point does water boil? How hot must water be? Could you tell me when water "
        "boils? When does water boil? At what temperature does water boil? How hot is boiling "
        "water? Tell me when water boils. What is the boiling point of water? How hot does "
        "water get? So when does water boil? What temperature does water boil at?"
    ),
    "joke": (
        "Can you make a joke? And do you know a joke? Give me a joke. Could you tell me a "
        "joke? Let me hear a joke. Tell me something funny. I would like to hear a joke. Do "
        "you have a joke for me? Tell me a joke. Do you know a joke? Make me laugh. Can you "
        "tell a joke? Say something funny. I want to hear a joke. Please tell me a joke. Do "
        "you know any jokes?"
    ),
    "moon": (
        "How far is it to the moon? And how far is the moon? I want to know how far the moon "
        "is. Do you know how far the moon is? What is the distance of the moon? Tell me the "
        "distance to the moon. How far do we have to go to the moon? Could you tell me how "
        "far it is to the moon? How far is the moon? How far away is the moon? What is the "
        "distance to the moon? Tell me how far the moon is. Is the moon far away? How long is "
        "the way to the moon? So how far is the moon? Can you tell me how far away the moon "
        "is?"
    ),
}

_STORIES = (
    "I have been walking around the city all day long and my feet hurt. "
    "My friend told me about you last week and said that I should call. "
    "I was reading a very old book last night and could not stop. "
    "It is a long story but I will tell you about it anyway. "
    "Yesterday it was raining here the whole day and we stayed at home. "
    "I have two children and both of them always ask me new things. "
    "We just came back from a long trip and have not slept much. "
    "My brother and I were talking about this at dinner last night. "
    "There is a thing that I have wanted to know for many years. "
    "I do not call very often but today I have some time. "
    "My mother is coming to visit me and she likes this very much. "
    "I was here last summer with my family and we liked it a lot. "
    "Somebody at work said something to me that I did not understand. "
    "I am sitting in my car right now and the street is very busy. "
    "My sister and I were reading about this the whole day yesterday. "
    "I have some time today and wanted to talk to you about it."
)


def wordings(intent: str, held_out: bool) -> list[str]:
    """How an intent is asked for, in training or in evaluation."""
    return _part((SHARED | RESTAURANT | TEACHER)[intent], held_out)


def draw_wording(intent: str, random: np.random.Generator) -> str:
    """One of an intent's training wordings, as it stands or with words around it.

    None of those held out, however it came about.
    """
    while True:
        text = str(random.choice(wordings(intent, held_out=False)))
        if random.random() < _OPENING_SHARE:
            small = text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]
            text = f"{random.choice(_OPENINGS)} {small}"
        if random.random() < _ENDING_SHARE:
            text = f"{text[:-1]}, {random.choice(_ENDINGS)}{text[-1]}"
        if _plain(text) not in map(_plain, wordings(intent, held_out=True)):
            return text


def _plain(text: str) -> list[str]:
    return [bare(word) for word in text.split()]


def stories(held_out: bool) -> list[str]:
    """Statements that lead up to a question: who listens says "uh-huh"."""
    return _part(_STORIES, held_out)


def _part(text: str, held_out: bool) -> list[str]:
    sentences = re.findall(r"[^.?]+[.?]", text)
    parts = sentences[-_HELD_OUT:] if held_out else sentences[:-_HELD_OUT]
    return [part.strip() for part in parts]


def bare(word: str) -> str:
    """A word without case and punctuation."""
    return word.lower().strip(".,?!")


def caller_words() -> list[str]:
    """Every word of what callers say in training."""
    known = SHARED | RESTAURANT | TEACHER
    texts = [text for intent in known for text in wordings(intent, held_out=False)]
    texts += [*stories(held_out=False), *_OPENINGS, *_ENDINGS]
    return sorted({word for text in texts for word in _plain(text)})
