"""Short stories in simple English from a small grammar: somebody, a place, a trouble, help, and a good end."""

from __future__ import annotations

import random
import re

NAMES = {
    "he": [
        "Tom",
        "Ben",
        "Max",
        "Leo",
        "Sam",
        "Jack",
        "Oscar",
        "Finn",
        "Milo",
        "Peter",
        "Hugo",
        "Theo",
        "Bruno",
        "Paul",
    ],
    "she": [
        "Anna",
        "Mia",
        "Lucy",
        "Ella",
        "Rosa",
        "Nora",
        "Lily",
        "Clara",
        "Emma",
        "Ruby",
        "Ida",
        "Molly",
        "Zoe",
        "Jane",
    ],
}
PEOPLE = ["boy", "girl", "sailor", "farmer", "baker", "painter", "princess", "prince", "fisherman", "shepherd", "gardener",
          "old woman", "old man", "young pirate", "king", "queen", "little robot", "knight", "wizard", "giant"]  # fmt: skip
ANIMALS = ["rabbit", "fox", "mouse", "owl", "bear", "cat", "dog", "duck", "hedgehog", "frog", "lion", "elephant", "monkey",
           "turtle", "squirrel", "bee", "bird", "horse", "whale", "penguin", "pig", "sheep", "goat", "deer", "wolf",
           "dragon", "butterfly", "snail", "crow", "hen", "kitten", "puppy", "tiger", "dolphin", "ant", "spider"]  # fmt: skip
FEMALE = {"girl", "princess", "old woman", "queen", "hen"}
MALE = {"boy", "prince", "old man", "king", "fisherman", "knight", "wizard"}
PLACES = ["a small village by the sea", "a green forest", "a quiet valley", "a little house on a hill", "an old garden",
          "a farm near the river", "a town with narrow streets", "an island far away", "a house at the edge of the woods",
          "a warm barn", "a cave in the mountains", "a harbor full of ships"]  # fmt: skip
TRAITS = ["little", "kind", "clever", "shy", "brave", "curious", "cheerful", "quiet", "young", "gentle"]
LOVES = ["to sing", "to walk in the rain", "to look at the stars", "to help others", "to tell stories", "to collect shells",
         "to bake bread", "to listen to the wind", "to swim", "to ask questions", "to paint", "to watch the clouds"]  # fmt: skip
THINGS = ["golden key", "red ball", "small lamp", "silver bell", "blue stone", "wooden boat", "old map", "warm scarf",
          "little drum", "green hat", "glass bottle", "music box",
          "paper boat", "red umbrella", "wooden flute", "big shell", "white feather", "yellow kite", "tiny clock", "round mirror"]  # fmt: skip
FOODS = ["warm soup", "bread and honey", "apple cake", "sweet berries", "pancakes", "tea and cookies"]

OPENINGS = [
    "Once upon a time, there was a {trait} {kind} called {name}.",
    "There was once a {trait} {kind} whose name was {name}.",
    "A {trait} {kind} named {name} lived in {place}.",
    "In {place} there lived a {trait} {kind}. {His} name was {name}.",
    "Long ago, a {trait} {kind} called {name} lived in {place}.",
]
LIKINGS = [
    "{name} loved {love}.",
    "Every day {he} liked {love}.",
    "More than anything, {name} liked {love}.",
    "{He} loved {love}, and everybody knew it.",
]

# Each story is a list of steps; each step a list of ways to say it.
PLOTS: dict[str, list[list[str]]] = {
    "a lost thing": [
        ["One day {name} lost {his} {thing}.", "One morning {his} {thing} was gone.", "One day {he} could not find {his} {thing}."],
        ["{He} looked under the bed, behind the door and in the grass, but it was not there.", "{He} looked everywhere, but {he} could not find it."],
        ["{name} was very sad and sat down under a tree.", "{He} was so sad that {he} wanted to cry."],
        ["Then {a_friend} came by. \"Why are you sad?\" asked the {friend}.", "{A_friend} saw {him} and asked, \"What is wrong?\""],
        ["\"I have lost my {thing},\" said {name}. \"Do not worry,\" said the {friend}. \"We will look for it together.\"",
         "{name} told the {friend} everything. \"I will help you,\" said the {friend}."],
        ["They looked near the river, and there it was, between two stones.", "They walked back the way {name} had come, and soon they found it in the tall grass."],
        ["{name} was so happy that {he} danced. \"Thank you, my friend,\" {he} said.", "\"Thank you!\" cried {name}, and {he} laughed for joy."],
        ["From that day on, the two were best friends.", "And since that day they have always helped each other."],
    ],
    "friendship": [
        ["But {name} had no friends, and sometimes {he} felt lonely.", "But {he} was often alone."],
        ["One day {he} met {a_friend} who was also alone.", "One afternoon {he} saw {a_friend} sitting by the path."],
        ["\"Hello,\" said {name} in a soft voice. \"Would you like to play with me?\"", "\"May I sit with you?\" asked {name}."],
        ["The {friend} smiled. \"I would love to,\" it said.", "\"Oh yes,\" said the {friend}. \"I was hoping that somebody would ask.\""],
        ["They played until the sun went down.", "They talked and laughed the whole day."],
        ["In the evening they ate {food} together.", "When it grew dark, they shared {food}."],
        ["\"Will you come back tomorrow?\" asked the {friend}. \"Every day,\" said {name}.", "\"I am not lonely any more,\" said {name}."],
        ["And so they became friends for life.", "It is good to have a friend."],
    ],
    "being brave": [
        ["But {name} was afraid of the dark.", "There was only one thing {he} was afraid of, and that was the night."],
        ["One night {he} heard a small voice outside. \"Help! Help!\" it called.", "One evening a storm came, and somebody cried for help."],
        ["{name} was scared, but {he} took {his} {thing} and went out.", "{His} heart beat fast, but {he} opened the door and went out into the dark."],
        ["There {he} found {a_friend} who had fallen into a hole.", "Behind the trees {he} found {a_friend}, cold and wet."],
        ["\"Hold on,\" said {name}. \"I will pull you out.\"", "\"Do not be afraid,\" said {name}. \"I am here now.\""],
        ["{He} pulled with all {his} strength, and at last the {friend} was safe.", "{He} carried the {friend} home and made a warm fire."],
        ["\"You are very brave,\" said the {friend}.", "\"You came, although it was dark,\" said the {friend}. \"That was brave.\""],
        ["After that night, {name} was not afraid of the dark any more.", "Then {name} knew that you can be afraid and brave at the same time."],
    ],
    "sharing": [
        ["One day {name} found a big basket of {food_raw}.", "One day somebody gave {him} a basket full of {food_raw}."],
        ["\"All of this is mine,\" {he} said, and hid it at home.", "{He} wanted to eat it all alone."],
        ["Soon {a_friend} came to the door. \"I am so hungry,\" said the {friend}.", "Then {a_friend} passed by. It was thin and hungry."],
        ["{name} looked at the basket and thought for a long time.", "At first {name} said nothing. {He} looked at the basket and then at the {friend}."],
        ["\"Come in,\" {he} said at last. \"There is enough for two.\"", "Then {he} opened the door wide. \"Please come in and eat with me,\" {he} said."],
        ["They ate together and told each other stories.", "They sat by the window, and everything tasted twice as good."],
        ["When winter came, the {friend} brought a bag of nuts for {name}.", "Some weeks later the {friend} came back with a gift."],
        ["{name} learned that what you share comes back to you.", "And {name} never ate alone again."],
    ],
    "a journey": [
        ["One day {name} wanted to see what was behind the mountains.", "One morning {he} wanted to see the wide world."],
        ["{He} packed some bread, took {his} {thing} and started to walk.", "{He} put {his} {thing} in a bag and went on {his} way."],
        ["{He} walked through a forest and crossed a cold river.", "The way was long. {He} crossed fields and hills."],
        ["On the third day {he} met {a_friend} who knew the way. \"Come with me,\" it said, and so they went on together.",
         "At a bridge {he} met {a_friend}. \"Where are you going?\" it asked. \"I want to see the world,\" said {name}. \"Then I will come with you,\" said the {friend}."],
        ["At last they stood on top of the mountain and saw the blue sea.", "In the evening they came to the top of a hill. Below them lay the sea, and it shone like gold."],
        ["\"It is beautiful,\" said {name}. \"But now I want to go home.\"", "They stayed there until the stars came out. Then it was time to go home."],
        ["When {he} came home, {he} told everyone what {he} had seen.", "At home {he} told everyone about it, and {he} was happy to see {his} own door again."],
    ],
    "a wish": [
        ["One night {name} saw a falling star and made a wish.", "One night a star fell from the sky, and {name} made a wish."],
        ["\"I wish I had wings,\" {he} said.", "\"I wish that I could fly,\" {he} said softly."],
        ["In the morning {a_friend} sat at the window. \"I heard your wish,\" it said.", "The next day {a_friend} came. \"I know what you want,\" it said."],
        ["\"I cannot give you wings, but I can show you something.\"", "\"Wings I do not have for you. But come with me.\""],
        ["They climbed the highest tree, and {name} could see the whole land below.", "They went up to the top of the hill, where the wind was strong."],
        ["The wind blew, and it felt just like flying.", "{name} opened {his} arms, and the wind made {him} feel as light as a feather."],
        ["\"Thank you,\" said {name}. \"That is even better than wings.\"", "{name} laughed. \"Now I know how a bird feels,\" {he} said."],
        ["From then on, they went up there every week.", "And that night {he} slept well and dreamed of the sky."],
    ],
    "learning": [
        ["{name} wanted to learn how to swim, but {he} could not do it.", "{name} tried to learn a new song, but it was hard."],
        ["On the first day {he} failed. On the second day {he} failed again.", "{He} tried once, and {he} tried twice, but it did not work."],
        ["\"I will never learn it,\" {he} said.", "\"I am not good at this,\" {he} said, and {he} wanted to give up."],
        ["{A_friend} heard that and shook its head.", "Then {a_friend} came and sat down next to {him}."],
        ["\"Nobody can do it on the first day,\" said the {friend}. \"Try a little every day.\"", "\"It took me a whole year,\" said the {friend}. \"Just go on.\""],
        ["So {name} practiced every morning.", "So {he} tried again the next day, and the day after that."],
        ["After some weeks, {he} could do it, and everybody was amazed.", "And one day, it was suddenly easy."],
        ["\"You see,\" said the {friend}, \"you only had to keep going.\"", "{name} was proud, and {he} never said \"never\" again."],
    ],
    "the storm": [
        ["One day a great storm came.", "One night the wind began to howl, and the rain fell like a wall."],
        ["The rain fell, the wind blew, and all the animals ran to hide.", "The trees bent low, and the river rose higher and higher."],
        ["{name} sat at home and heard a knock at the door.", "Then {name} heard a small sound at {his} door."],
        ["Outside stood {a_friend}, wet from head to foot.", "It was {a_friend}, cold and wet."],
        ["\"Please let me in,\" said the {friend}. \"My home is gone.\"", "\"May I stay until the storm is over?\" asked the {friend}."],
        ["\"Of course,\" said {name}, and {he} gave the {friend} {food} and a warm blanket.", "{name} made a fire and cooked {food}."],
        ["In the morning the sun came out, and they built a new home together.", "The next day the sky was blue, and they went out to repair what was broken."],
        ["\"A good neighbor is worth more than a strong house,\" said the {friend}.", "Since then they have been neighbors and good friends."],
    ],
    "honesty": [
        ["One day {name} broke a beautiful cup that belonged to {his} grandmother.", "One day {name} took the last piece of cake, although it was not {his}."],
        ["Nobody had seen it.", "{He} looked around, but nobody was there."],
        ["\"Maybe I should say that the wind did it,\" {he} thought.", "\"I will just say nothing,\" {he} thought."],
        ["But {he} could not sleep that night.", "But the whole day {he} had a bad feeling."],
        ["\"You must tell the truth,\" said {his} friend, the {friend}.", "{He} asked {his} friend, the {friend}, what to do. \"Tell the truth,\" said the {friend}."],
        ["So in the morning {name} went and told everything.", "So {name} went home and said, \"It was me. I am sorry.\""],
        ["{His} grandmother smiled. \"Thank you for telling me,\" she said.", "Nobody was angry. \"It is good that you told us,\" they said."],
        ["{name} felt as light as a feather.", "That night {he} slept very well."],
    ],
    "a treasure": [
        ["One day {name} found an old map in a bottle.", "One day {he} found a map under a stone."],
        ["There was a red cross on it. \"A treasure!\" cried {name}.", "\"This must be the way to a treasure,\" {he} said."],
        ["{He} asked {a_friend} to come along, and they set out at once.", "{He} called {his} friend, the {friend}, and they went to look for it."],
        ["They went past the old mill and over the bridge.", "They followed the map through the woods until they came to a big oak."],
        ["There they dug a deep hole and found a small box.", "They dug and dug, and at last they hit something hard."],
        ["In the box there was no gold, only a letter.", "But inside there was only a piece of paper."],
        ["It said: \"The best treasure is a friend who digs with you.\"", "On it stood: \"You are rich if you are not alone.\""],
        ["They looked at each other and laughed all the way home.", "They kept the letter, and they are still friends today."],
    ],
    "helping": [
        ["One day {name} saw {a_friend} that could not move its leg.", "On the way home {he} saw {a_friend} that was caught in a net."],
        ["\"Wait, I will help you,\" said {name}.", "{name} did not think long. {He} ran to help."],
        ["{He} worked carefully until the {friend} was free.", "It took a long time, but {he} did not give up."],
        ["\"Thank you,\" said the {friend}. \"I will not forget this.\"", "\"One day I will help you too,\" said the {friend}."],
        ["{name} only laughed. How could the {friend} ever help {him}?", "Then the {friend} went away, and {name} soon forgot about it."],
        ["But some weeks later {name} was lost in the fog.", "But when winter came, {name} lost {his} way in the snow."],
        ["All at once {he} heard a voice. It was the {friend}. \"Follow me,\" it said.", "Then the {friend} came out of the white and showed {him} the way home."],
        ["So a good deed always finds its way back.", "And {name} understood that even a small friend can be a great help."],
    ],
    "a party": [
        ["It was {his} birthday, but nobody said a word about it.", "{name} had a birthday, and {he} waited for {his} friends."],
        ["{He} waited the whole morning, but nobody came.", "Noon came, and still there was no guest."],
        ["\"They have all forgotten me,\" {he} thought, and a tear ran down {his} face.", "{He} felt sad and went for a walk."],
        ["Then {a_friend} came running. \"Come quickly,\" it called, \"we need your help!\"", "On the way {he} met {a_friend}. \"Please come with me,\" it said."],
        ["{name} followed the {friend} to the big tree.", "They ran through the grass and around the corner."],
        ["There stood all {his} friends with {food} and a {thing}.", "And there were all of them, with lights, {food} and music."],
        ["\"Happy birthday, {name}!\" they shouted.", "\"Surprise!\" they called. \"Happy birthday!\""],
        ["It was the best day of {his} life.", "They sang and danced until the stars came out."],
    ],
    "a find": [
        ["One day {name} found a {thing} in the grass.", "On the way home {he} found a {thing} under a tree."],
        ["\"What a beautiful {thing}!\" said {name}. \"Who may have lost it?\"", "{name} picked it up and looked at it from all sides. \"Somebody must miss this,\" {he} thought."],
        ["{He} asked everyone, but nobody knew the {thing}.", "{He} went from door to door with the {thing}, but it belonged to nobody there."],
        ["At last {he} met {a_friend} who looked very sad.", "Then {he} saw {a_friend} that was looking for something on the ground."],
        ["\"My {thing} is gone,\" said the {friend}. \"It was a gift from my mother.\"", "\"I lost my {thing},\" said the {friend}, \"and I cannot sleep without it.\""],
        ["{name} held out the {thing}. \"Here it is!\"", "\"Then this is yours,\" said {name} and gave the {thing} back."],
        ["The {friend} danced for joy. \"You are honest and kind,\" it said.", "The {friend} was so happy that it could not speak."],
        ["So {name} lost a {thing} and found a friend.", "Since that day they have met at the same tree every week."],
    ],
    "sleep": [
        ["One night {name} could not sleep.", "It was late, but {name} was still awake."],
        ["{He} counted the stars, but there were too many.", "{He} turned to the left, and {he} turned to the right."],
        ["So {he} went out and asked {a_friend}, \"What do you do when you cannot sleep?\"", "{A_friend} looked in at the window. \"Why are you awake?\" it asked."],
        ["\"I listen to the wind,\" said the {friend}. \"It tells old stories.\"", "\"I think of one good thing that happened today,\" said the {friend}."],
        ["{name} lay down and closed {his} eyes.", "{name} went back to bed and tried it."],
        ["The wind sang softly in the trees.", "{He} thought of the warm sun and of the sweet smell of the grass."],
        ["Before long {he} was fast asleep.", "And slowly, slowly, {his} eyes fell shut."],
        ["The moon smiled, and the whole land was quiet. Good night!", "Sleep well, little {kind}."],
    ],
}  # fmt: skip

THEMES = {"a lost thing": "something that was lost", "friendship": "friendship", "being brave": "being brave", "sharing": "sharing",
          "a journey": "a journey", "a wish": "a wish", "learning": "learning something new", "the storm": "a storm",
          "honesty": "telling the truth", "a treasure": "a treasure", "helping": "helping others", "a party": "a birthday",
          "a find": "something that was found", "sleep": "going to sleep"}  # fmt: skip


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def slots(rng: random.Random, kind: str, friend: str, trait: str, plot: str) -> dict[str, str]:
    he = "she" if kind in FEMALE else "he" if kind in MALE else rng.choice(("he", "she"))
    his, him = ("his", "him") if he == "he" else ("her", "her")
    return {
        "kind": kind, "friend": friend, "trait": trait, "name": rng.choice(NAMES[he]), "place": rng.choice(PLACES),
        "love": rng.choice(LOVES), "thing": rng.choice(THINGS), "food": rng.choice(FOODS),
        "food_raw": rng.choice(("apples", "nuts", "berries", "pears")), "a_friend": f"{article(friend)} {friend}",
        "A_friend": f"{capitalise(article(friend))} {friend}", "he": he, "his": his, "him": him,
        "He": capitalise(he), "His": capitalise(his), "plot": plot,
    }  # fmt: skip


def tell(rng: random.Random, kind: str | None = None, friend: str | None = None) -> tuple[str, dict[str, str]]:
    """(story, what it is about). The friend is another animal than the hero."""
    kind = kind or rng.choice(ANIMALS + PEOPLE)
    friend = friend or rng.choice([animal for animal in ANIMALS if animal not in (kind, "whale", "dragon", "elephant")])
    plot = rng.choice(list(PLOTS))
    trait = rng.choice([trait for trait in TRAITS if trait not in kind and not (trait == "young" and "old" in kind)])
    about = slots(rng, kind, friend, trait, plot)
    sentences = [
        rng.choice(OPENINGS),
        *rng.sample(LIKINGS, rng.choice((0, 1, 1))),
        *(rng.choice(step) for step in PLOTS[plot]),
    ]
    return mend(" ".join(sentences).format(**about)), about


def mend(text: str) -> str:
    return re.sub(
        r"\b([Aa]) (?=(?:old|young|early|ugly|elephant|owl|ant|island)\b)",
        lambda a: f"{a[1]}n " if text[a.end()] in "aeiou" else a[0],
        text,
    )


def wish(rng: random.Random, about: dict[str, str]) -> str:
    """A request that this story answers."""
    hero, friend = f"{article(about['kind'])} {about['kind']}", f"{article(about['friend'])} {about['friend']}"
    ask = rng.choice(("Tell me a story about {}.", "Tell me a short story about {}.", "Can you tell me a story about {}?",
                      "Write a story about {}.", "Write a short story about {}.", "I want to hear a story about {}.",
                      "Please tell me a story about {}.", "Do you know a story about {}?", "A story about {}, please.",
                      "I would like a story about {}.", "Tell me a little story about {}.", "Invent a story about {}.", "Make up a story about {}.", "Could you tell me a story about {}?"))  # fmt: skip
    place, plot = about["place"], about["plot"]
    given = [f"{hero} in {place}", f"{article(about['trait'])} {about['trait']} {about['kind']} and {friend}"]
    if plot in ("a lost thing", "a find"):
        given += [
            f"{hero} and {article(about['thing'])} {about['thing']}",
            f"{article(about['thing'])} {about['thing']}",
        ] * 2
        given += [
            f"{hero} who {'loses' if plot == 'a lost thing' else 'finds'} {article(about['thing'])} {about['thing']}"
        ] * 2
    if plot == "helping":
        given += [f"{hero} that helps {friend}" if about["kind"] in ANIMALS else f"{hero} who helps {friend}"] * 3
    subject = rng.choice(
        (
            *given,
            hero,
            hero,
            hero,
            f"{hero} and {friend}",
            f"{hero} called {about['name']}",
            f"{article(about['trait'])} {about['trait']} {about['kind']}",
            THEMES[about["plot"]],
        )
    )
    return ask.format(subject)


OPEN_WISHES = ["Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "Please tell me a story.", "I want a story.",
               "Tell a story", "Do you know a story?", "I want to hear a story.", "Tell me a nice story.", "Another story, please.",
               "Tell me another story.", "Tell me a fairy tale.", "Write a short story.", "Tell me a little story.",
               "Could you tell me a nice story?", "Tell me a story for children."]  # fmt: skip
BEDTIME = ["Tell me a bedtime story.", "Tell me a story before I sleep.", "Can you tell me a bedtime story?", "Tell me a good night story.",
           "I want a bedtime story.", "Please tell me a bedtime story."]  # fmt: skip
