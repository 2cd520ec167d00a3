"""The Chinese conversations for fine-tuning, made from talk/zh_*.txt, talk/zh_tables.toml, the story grammar and the sources.

Makers yield chats as lists of turns, as chats.py does; nothing is random but through the generator given.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chinese
import chinese_stories

Turns = list[str]
Table = dict[str, Any]
TALK = Path(__file__).parent / "talk"
PERSONS = ["小明", "小红", "小丽", "小刚", "小华", "王芳", "李伟", "张敏", "刘洋", "陈静", "杨帆", "赵磊", "周琳", "吴昊", "孙悦", "马超", "林晓", "高峰",
           "何欢", "小美", "阿强", "安娜", "汤姆", "玛丽", "大卫"]  # fmt: skip
DIGITS = "零一二三四五六七八九十"

# ------------------------------------------------------------------------------------------------------------ own texts


def read_blocks(name: str) -> list[tuple[list[str], list[str]]]:
    """(questions, answers) of every block of talk/<name>.txt, in the form that chats.read_talk describes."""
    blocks = []
    for block in (TALK / f"{name}.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = block.split("\n")
        questions = [part.strip() for line in lines if line.startswith("? ") for part in line[2:].split(" | ")]
        answers = [line[2:].strip().replace(" / ", "\n") for line in lines if line.startswith("= ")]
        if questions and answers:
            blocks.append((questions, answers))
    return blocks


def loosely(question: str, rng: random.Random) -> str:
    """The question as people type it: often as written, sometimes without its stop, or with a word before or after."""
    way = rng.random()
    bare = question.rstrip("？。！")
    if way < 0.5 or not chinese.HAN.search(question):
        return question
    if way < 0.65:
        return bare
    if way < 0.72:
        return bare + question[len(bare) :].replace("？", "?").replace("。", ".").replace("！", "!")
    if len(bare) < 4 or question.startswith(("请", "你好", "嗨", "早", "晚")):
        return question
    if question.endswith("？") and way < 0.95:
        return (
            rng.choice(
                (
                    "请问，",
                    "你好，",
                    "你好！",
                    "我想知道，",
                    "那",
                    "嗨，",
                    "问一下，",
                    "对了，",
                    "我有个问题：",
                    "请告诉我，",
                )
            )
            + question
        )
    return rng.choice(("你好，", "嗨，", "那个，", "嗯，")) + question


def talk(name: str, rng: random.Random, times: int) -> Iterator[Turns]:
    """Every question `times` times, each time with the next answer and in another form."""
    for questions, answers in read_blocks(name):
        order = rng.sample(range(len(answers)), len(answers))
        turn = 0
        for repeat in range(times):
            for question in questions:
                yield [question if repeat == 0 else loosely(question, rng), answers[order[turn % len(answers)]]]
                turn += 1


FILLINGS = {
    "animal": ["大象", "熊猫", "小猫", "小狗", "兔子", "鲸鱼", "企鹅", "狐狸", "马", "老虎", "海豚", "猴子", "松鼠", "猫头鹰"],
    "activity": ["看一本书", "做一个蛋糕", "给朋友打电话", "画一幅画", "听听音乐", "煮一锅汤", "整理房间", "写一封信", "学一首新歌", "下一盘棋"],
    "dish": ["番茄炒蛋", "面条", "饺子", "炒饭", "蔬菜汤"], "dish2": ["麻婆豆腐", "土豆丝", "包子", "鱼香茄子", "馄饨"],
    "pet": ["狗", "猫", "兔子", "鹦鹉", "仓鼠"], "petname": ["豆豆", "毛毛", "花花", "小白", "球球", "旺财", "咪咪", "可乐"],
    "place": ["公园", "动物园", "海边", "电影院", "博物馆", "图书馆", "植物园", "山上"], "age": ["七", "八", "十", "十二", "二十", "三十", "四十"],
    "weather": ["在下雨", "在下雪", "风很大", "很冷", "太热了"], "relative": ["妈妈", "爸爸", "姐姐", "哥哥", "奶奶", "朋友", "老师"],
    "gift": ["一束花", "一本好书", "一条围巾", "一盒巧克力", "一幅自己画的画", "一个漂亮的杯子"],
    "skill": ["钢琴", "游泳", "画画", "跳舞", "下棋", "唱歌", "吉他", "做饭", "骑自行车"], "skill2": ["画画", "唱歌", "做饭", "写故事", "照顾动物", "修东西"],
    "country": ["法国", "意大利", "日本", "泰国", "英国", "埃及", "加拿大", "西班牙"],
}  # fmt: skip


def dialogs(rng: random.Random, words: dict[str, str], times: int) -> Iterator[Turns]:
    """Each dialog of talk/zh_dialogs.txt `times` times with other words filled in."""
    for block in (TALK / "zh_dialogs.txt").read_text(encoding="utf-8").split("\n\n"):
        turns = [line[3:] for line in block.strip().split("\n") if line.startswith(("U: ", "A: "))]
        for _ in range(times if "{" in block else 3):
            filled = {key: rng.choice(choices) for key, choices in FILLINGS.items()}
            english = rng.choice(list(words))
            filled |= {
                "person": rng.choice(PERSONS),
                "en": english,
                "En": english[0].upper() + english[1:],
                "zh": words[english],
            }
            filled["animal2"] = rng.choice([each for each in FILLINGS["animal"] if each != filled["animal"]])
            loose = rng.random() < 0.4
            said = [turn.format(**filled) for turn in turns]
            if said:
                yield [loosely(turn, rng) if loose and at % 2 == 0 else turn for at, turn in enumerate(said)]


def names(rng: random.Random, count: int) -> Iterator[Turns]:
    """Questions for its name out of parts, and names told and remembered."""
    starts = (
        "",
        "你好，",
        "你好！",
        "嗨，",
        "请问，",
        "不好意思，",
        "早上好，",
        "晚上好！",
        "对了，",
        "初次见面，",
        "打扰一下，",
    )
    cores = (
        "你叫什么名字",
        "你叫什么",
        "你的名字是什么",
        "我该怎么叫你",
        "怎么称呼你",
        "你是谁",
        "能告诉我你的名字吗",
        "我可以知道你的名字吗",
        "您叫什么名字",
        "你有名字吗",
    )
    answers = ("我叫 leadline。", "我是 leadline。", "我的名字是 leadline。", "你可以叫我 leadline。", "我叫 leadline，很高兴认识你。", "我是 leadline，有什么可以帮你的吗？",
               "我的名字是 leadline。你呢，你叫什么？")  # fmt: skip
    for start in starts:
        for core in cores:
            for end in ("？", ""):
                yield [start + core + end, rng.choice(answers)]
    for _ in range(count):
        person = rng.choice(PERSONS)
        hello = rng.choice(
            ("我叫{}。", "我是{}。", "你好，我叫{}。", "我的名字是{}。", "你可以叫我{}。", "嗨，我是{}")
        ).format(person)
        greeting = rng.choice(
            ("你好，{}！我叫 leadline。", "很高兴认识你，{}！", "{}，你好！我是 leadline，有什么可以帮你的？")
        ).format(person)
        mine = rng.choice((["我叫什么名字？", f"你叫{person}。"], ["你还记得我的名字吗？", f"记得，你叫{person}。"], ["我是谁？", f"你是{person}。"],
                           ["我叫什么？", f"你告诉过我，你叫{person}。"]))  # fmt: skip
        yours = [
            rng.choice(("你呢？", "你叫什么名字？", "那你叫什么？", "请问你是谁？")),
            rng.choice(("我叫 leadline。", "我的名字是 leadline。")),
        ]
        yield [hello, greeting, *rng.choice((mine, yours, [*yours, *mine]))]


# --------------------------------------------------------------------------------------------------------------- tables


def asked(rng: random.Random, answers: tuple[str, ...], questions: tuple[str, ...], **words: str) -> Iterator[Turns]:
    """Every question once, answered in one of the ways."""
    for question in questions:
        yield [loosely(question.format(**words), rng), rng.choice(answers).format(**words)]


def animal_chats(table: Table, rng: random.Random) -> Iterator[Turns]:
    for name, (measure, kind, home, food, special) in table.items():
        words = {"n": name, "m": measure, "k": kind, "h": home, "f": food, "s": special}
        about = ("{n}是{k}。它住在{h}，吃{f}。{s}", "{n}是{k}，生活在{h}。它吃{f}。{s}")
        short = ("{n}是{k}。{s}", *about)
        yield from asked(
            rng,
            about,
            (
                "请介绍一下{n}。",
                "给我讲讲{n}。",
                "介绍一下{n}吧。",
                "你知道{n}吗？",
                "你对{n}了解多少？",
                "说说{n}。",
                "我想了解{n}。",
            ),
            **words,
        )
        yield from asked(
            rng, short, ("{n}是什么？", "什么是{n}？", "{n}是什么样的动物？", "{n}有什么特别的地方？"), **words
        )
        yield from asked(
            rng, ("{n}住在{h}。", "{n}生活在{h}。"), ("{n}住在哪里？", "{n}生活在哪里？", "在哪里能看到{n}？"), **words
        )
        yield from asked(
            rng, ("{n}吃{f}。", "{n}喜欢吃{f}。"), ("{n}吃什么？", "{n}喜欢吃什么？", "{n}的食物是什么？"), **words
        )
        yield from asked(
            rng,
            ("真好！{s}你喜欢{n}的什么地方？",),
            ("我喜欢{n}。", "我今天看见了一{m}{n}。", "我最喜欢{n}了。"),
            **words,
        )
        yield [f"{name}是什么？", f"{name}是{kind}。", "它住在哪里？", f"它住在{home}。", "它吃什么？", f"它吃{food}。"]
        yield from asked(rng, ("一{m}{n}。", "应该说“一{m}{n}”。"), ("{n}用什么量词？", "一什么{n}？"), **words)


def country_chats(table: Table, rng: random.Random) -> Iterator[Turns]:
    for name, (english, capital, language, continent) in table.items():
        words = {"n": name, "e": english, "c": capital, "l": language, "p": continent}
        yield from asked(rng, ("{n}的首都是{c}。",) * 3 + ("是{c}。",),
                         ("{n}的首都是哪里？", "{n}的首都是什么？", "{n}的首都在哪里？", "请问{n}的首都是哪座城市？", "告诉我{n}的首都。", "{n}首都是哪"), **words)  # fmt: skip
        yield from asked(
            rng,
            ("{n}人说{l}。", "在{n}，人们说{l}。"),
            ("{n}人说什么语言？", "{n}说什么话？", "在{n}说什么语言？"),
            **words,
        )
        yield from asked(rng, ("{n}在{p}。",), ("{n}在哪里？", "{n}在哪个洲？", "{n}是哪个洲的国家？"), **words)
        yield from asked(
            rng,
            ("{n}是{p}的国家，首都是{c}，人们说{l}。",),
            ("请介绍一下{n}。", "说说{n}吧。", "你知道{n}吗？"),
            **words,
        )
        yield from asked(
            rng,
            ("“{n}”的英语是 {e}。", "{n} in English is {e}."),
            ("“{n}”用英语怎么说？", "{n}的英文是什么？"),
            **words,
        )
        yield from asked(
            rng,
            ("{e} is {n} in Chinese.", "In Chinese, {e} is {n}."),
            ("How do you say {e} in Chinese?", "What is {e} called in Chinese?"),
            **words,
        )
        if "（" not in capital:
            yield from asked(
                rng, ("{c}是{n}的首都。", "是{n}的首都。"), ("{c}是哪个国家的首都？", "{c}在哪个国家？"), **words
            )


def word_chats(table: Table, rng: random.Random) -> Iterator[Turns]:
    """Words and phrases from one language to the other."""
    for english, han in table.items():
        end = "" if english.endswith((".", "!", "?")) else "."
        words = {
            "e": english,
            "z": han,
            "E": english[0].upper() + english[1:],
            "end": end,
            "stop": "" if han.endswith(("。", "！", "？")) else "。",
        }
        yield from asked(rng, ('"{E}" is {z} in Chinese.', "{z}", "In Chinese you say {z}", "{z}"),
                         ('How do you say "{e}" in Chinese?', "How do I say {e} in Chinese?", 'What is "{e}" in Chinese?', "Translate into Chinese: {e}",
                          "What is the Chinese word for {e}?" if end else "Say this in Chinese: {e}", "{e} in Chinese?", "Tell me the Chinese for {e}{end}"), **words)  # fmt: skip
        meant = "“{e}”的意思是“{z}”。" if end else "意思是：{z}"
        yield from asked(
            rng,
            (meant, "{z}{stop}"),
            ("“{e}”是什么意思？", "{e} 是什么意思？", "{e} 用中文怎么说？", "把 {e} 翻译成中文。"),
            **words,
        )
        yield from asked(rng, ("“{z}”的英语是“{e}”。" if end else "英语是：{e}", "{E}{end}", "英语是 {e}{end}"),
                         ("“{z}”用英语怎么说？", "“{z}”的英文是什么？", "{z}用英语怎么说", "把“{z}”翻译成英文。", "请翻译成英语：{z}"), **words)  # fmt: skip
        yield from asked(
            rng,
            ('{z} means "{e}" in English.' if end else "{z} means: {e}",),
            ("What does {z} mean?", "What does {z} mean in English?", "Translate into English: {z}"),
            **words,
        )


def game_chats(tables: Table, rng: random.Random) -> Iterator[Turns]:
    """Opposites, words that mean the same, meanings, jobs, things, sentences."""
    for word, other in tables["opposite"].items():
        for a, b in (
            ((word, other), (other, word)) if list(tables["opposite"].values()).count(other) == 1 else ((word, other),)
        ):
            yield from asked(rng, ("“{a}”的反义词是“{b}”。",) * 2 + ("{b}。",),
                             ("“{a}”的反义词是什么？", "{a}的反义词是什么？", "和“{a}”相反的词是什么？", "说出“{a}”的反义词。", "{a}的反义词", "请告诉我“{a}”的反义词。"), a=a, b=b)  # fmt: skip
    for word, other in tables["synonym"].items():
        yield from asked(
            rng,
            ("“{a}”的近义词是“{b}”。", "可以说“{b}”。"),
            ("“{a}”的近义词是什么？", "和“{a}”意思相近的词是什么？", "{a}的近义词", "“{a}”还可以怎么说？"),
            a=word,
            b=other,
        )
    for word, meaning in tables["meaning"].items():
        yield from asked(rng, ("“{a}”的意思是{b}。", "“{a}”就是{b}。"),
                         ("“{a}”是什么意思？", "{a}是什么意思？", "什么叫“{a}”？", "请解释“{a}”这个词。", "“{a}”怎么解释？", "{a}的意思是什么？"), a=word, b=meaning)  # fmt: skip
    for word, does in tables["job"].items():
        yield from asked(
            rng,
            ("{a}的工作是{b}。", "{a}每天{b}。"),
            ("{a}是做什么的？", "{a}每天做什么？", "{a}的工作是什么？", "{a}做什么？"),
            a=word,
            b=does,
        )
        yield from asked(rng, ("真不错！{a}的工作是{b}。你喜欢吗？",), ("我是{a}。", "我想当{a}。"), a=word, b=does)
        yield from asked(rng, ("{a}的工作就是{b}。",), ("谁的工作是{b}？",), a=word, b=does)
    for word, (measure, what) in tables["thing"].items():
        yield from asked(
            rng,
            ("{a}是{b}。",),
            (
                "{a}是什么？",
                "什么是{a}？",
                "{a}有什么用？",
                "解释一下什么是{a}。",
                "请告诉我{a}是什么。",
                "{a}是用来做什么的？",
            ),
            a=word,
            b=what,
        )
        yield from asked(
            rng, ("一{m}{a}。", "应该说“一{m}{a}”。"), ("{a}用什么量词？", "一什么{a}？"), a=word, m=measure
        )
    for word, sentences in tables["sentence"].items():
        asks = ("用“{a}”造句。", "请用“{a}”造句。", "用“{a}”造一个句子。", "请用“{a}”写一句话。", "用{a}造句")
        for ask in asks:
            yield [loosely(ask.format(a=word), rng), rng.choice(sentences)]


def group_chats(table: Table, rng: random.Random) -> Iterator[Turns]:
    """Three fruits, some colours, does a carrot belong to the fruits."""
    asks = (
        "说出{n}种{g}。",
        "请说出{n}种{g}。",
        "列出{n}种{g}。",
        "告诉我{n}种{g}。",
        "你能说出{n}种{g}吗？",
        "写出{n}种{g}的名字。",
        "举{n}个{g}的例子。",
    )
    countable = {"家人": "个", "亚洲国家": "个", "欧洲国家": "个", "非洲国家": "个", "中国城市": "个", "季节": "个", "节日": "个", "行星": "颗", "河流": "条",
                 "下雨天可以做的事": "件", "厨房里的东西": "样", "身体部位": "个"}  # fmt: skip
    for group, members in table.items():
        for _ in range(4):
            for ask in asks:
                number = rng.choice([count for count in (2, 3, 3, 3, 4, 5) if count <= len(members)])
                count = "两" if number == 2 else DIGITS[number]
                wish = ask.format(n=count, g=group).replace("种", countable.get(group, "种"))
                chosen = "、".join(rng.sample(members, number))
                start = rng.choice(("", "", "比如", f"{count}{countable.get(group, '种')}{group}："))
                yield [loosely(wish, rng), f"{start}{chosen}。"]
        for ask in ("你知道哪些{g}？", "有哪些{g}？", "说几个{g}。", "举几个{g}的例子。"):
            yield [loosely(ask.format(g=group), rng), f"比如{'、'.join(rng.sample(members, min(4, len(members))))}。"]
    yield from category_chats(table, rng)


def category_chats(table: Table, rng: random.Random) -> Iterator[Turns]:
    single = (
        "水果",
        "蔬菜",
        "鸟",
        "昆虫",
        "颜色",
        "饮料",
        "运动",
        "乐器",
        "家具",
        "交通工具",
        "职业",
        "衣服",
        "文具",
        "花",
    )
    for group in single:
        for member in table[group]:
            other = rng.choice([each for each in single if member not in table[each]])
            yield [
                loosely(f"{member}是{group}吗？", rng),
                f"是的，{member}是{group}。" if group not in ("职业", "运动") else f"是的，{member}是一种{group}。",
            ]
            yield [loosely(f"{member}是{other}吗？", rng), f"不是，{member}是{group}，不是{other}。"]
            yield [
                loosely(f"{member}是水果还是{group}？" if group != "水果" else f"{member}是水果还是家具？", rng),
                f"{member}是{group}。",
            ]


def number_chats(rng: random.Random) -> Iterator[Turns]:
    """Counting, days, months, the order of numbers."""
    days, months = [f"星期{day}" for day in "一二三四五六日"], [f"{month}月" for month in (*DIGITS[1:], "十一", "十二")]
    for names_, unit in ((days, "天"), (months, "个月")):
        for at, name in enumerate(names_):
            after, before = names_[(at + 1) % len(names_)], names_[at - 1]
            tail = "是星期几？" if unit == "天" else "是几月？"
            yield from asked(
                rng,
                ("{n}的后一{u}是{a}。", "是{a}。"),
                ("{n}后面是什么？", "{n}的下一{u}" + tail, "{n}之后" + tail),
                n=name,
                a=after,
                u=unit,
            )
            yield from asked(
                rng,
                ("{n}的前一{u}是{b}。", "是{b}。"),
                ("{n}前面是什么？", "{n}的前一{u}" + tail),
                n=name,
                b=before,
                u=unit,
            )
            if unit == "天":
                yield from asked(
                    rng, ("明天是{a}。",), ("今天是{n}，明天是星期几？", "如果今天是{n}，那么明天呢？"), n=name, a=after
                )
                yield from asked(rng, ("昨天是{b}。",), ("今天是{n}，昨天是星期几？",), n=name, b=before)
                yield from asked(rng, ("后天是{a}。",), ("今天是{n}，后天是星期几？",), n=name, a=names_[(at + 2) % 7])
    for number in range(1, 30):
        yield from asked(
            rng,
            ("{n}后面是{a}。", "是{a}。"),
            ("{n}后面的数是几？", "{n}的下一个数是多少？"),
            n=str(number),
            a=str(number + 1),
        )
        yield from asked(rng, ("{n}前面是{b}。",), ("{n}前面的数是几？",), n=str(number), b=str(number - 1))
        yield from asked(
            rng, ("{n}是" + ("双数" if number % 2 == 0 else "单数") + "。",), ("{n}是单数还是双数？",), n=str(number)
        )
    for number in range(3, 11):
        counted = "，".join(DIGITS[1 : number + 1]) + "。"
        yield from asked(rng, (counted,), ("从一数到{n}。", "请数到{n}。", "数一数，从一到{n}。"), n=DIGITS[number])
    for a in range(2, 40):
        b = rng.choice([each for each in range(1, 60) if each != a])
        yield from asked(
            rng,
            ("{m}大。", "{m}比{s}大。"),
            ("{a}和{b}哪个大？", "哪个数更大，{a}还是{b}？"),
            a=str(a),
            b=str(b),
            m=str(max(a, b)),
            s=str(min(a, b)),
        )


SIZES = ["蚂蚁", "蜜蜂", "老鼠", "松鼠", "兔子", "狗", "羊", "马", "大象", "鲸鱼"]


def comparison_chats(rng: random.Random) -> Iterator[Turns]:
    for small_at, small in enumerate(SIZES):
        for large in SIZES[small_at + 1 :]:
            a, b = (small, large) if rng.random() < 0.5 else (large, small)
            yield [loosely(f"{a}和{b}哪个大？", rng), f"{large}比{small}大。"]
            yield [
                loosely(f"{b}比{a}大吗？", rng),
                f"是的，{large}比{small}大。" if b == large else f"不，{small}比{large}小。",
            ]
            yield [loosely(f"哪个更小，{a}还是{b}？", rng), f"{small}更小。"]


POEM_SUBJECTS = {
    "春天": ["春风轻轻吹，", "燕子又飞回，", "小草探出头，", "花儿开成堆。"], "夏天": ["池塘荷花开，", "青蛙唱起来，", "树下吃西瓜，", "凉风慢慢来。"],
    "冬天": ["雪花飘啊飘，", "落在小树梢，", "围着火炉坐，", "全家乐陶陶。"], "月亮": ["月亮弯又弯，", "像只小小船，", "载着我的梦，", "飘到天那边。"],
    "大海": ["大海蓝又蓝，", "白帆去远方，", "浪花轻轻唱，", "拍打着沙滩。"], "雨": ["雨点沙沙响，", "落在小窗上，", "小伞开成花，", "走过小街巷。"],
    "妈妈": ["妈妈的手，", "又软又温暖，", "牵着我走路，", "陪我到天晚。"], "小猫": ["小猫喵喵叫，", "太阳暖洋洋，", "追着毛线跑，", "累了睡一场。"],
    "星星": ["星星亮晶晶，", "挂在夜空中，", "对我眨眨眼，", "陪我入梦中。"], "太阳": ["太阳笑哈哈，", "爬上高山尖，", "照亮小村庄，", "温暖在心田。"],
    "风": ["风儿看不见，", "跑过小花园，", "吹动树叶响，", "风筝飞上天。"], "雪": ["大雪下一夜，", "世界白茫茫，", "堆个小雪人，", "站在大门旁。"],
    "朋友": ["你有一把伞，", "我有一盏灯，", "下雨天黑时，", "我们一起行。"], "花": ["花儿红又香，", "开在小路旁，", "蜜蜂嗡嗡叫，", "忙着采蜜糖。"],
    "家": ["门前一棵树，", "窗里一盏灯，", "走了多远路，", "灯光等我回。"], "小鸟": ["小鸟枝头唱，", "唱醒小村庄，", "拍拍小翅膀，", "飞向大太阳。"],
    "树": ["一棵老槐树，", "站在小路旁，", "夏天给我荫，", "冬天晒太阳。"], "船": ["小船摇啊摇，", "摇过小石桥，", "桥下鱼儿跳，", "水面月儿飘。"],
}  # fmt: skip


def poem_chats(rng: random.Random) -> Iterator[Turns]:
    asks = (
        "写一首关于{}的诗。",
        "写一首{}的小诗。",
        "请写一首关于{}的小诗。",
        "用{}写一首诗。",
        "给我写一首{}的诗。",
        "来一首关于{}的诗吧。",
        "你能写一首{}的诗吗？",
    )
    for subject, lines in POEM_SUBJECTS.items():
        for ask in asks:
            yield [loosely(ask.format(subject), rng), "\n".join(lines)]


NOTES = {
    "感谢": ("亲爱的{w}：\n谢谢你{r}。我很开心，也很感动。祝你天天快乐！", ["帮我补习功课", "送我的礼物", "一直照顾我", "陪我去医院", "教我做饭"]),
    "道歉": ("亲爱的{w}：\n对不起，{r}。我知道错了，以后会注意的。希望你能原谅我。", ["我昨天迟到了", "我忘了你的生日", "我弄丢了你的书", "我说话太大声了"]),
    "邀请": ("亲爱的{w}：\n{r}，你愿意来吗？我会准备好吃的。盼望你的到来！", ["星期六是我的生日", "周末我们去公园野餐", "星期天我家有一个聚会"]),
    "生日祝福": ("亲爱的{w}：\n祝你生日快乐！{r}！", ["愿你健康平安，每天都开心", "愿你的梦想都能实现", "愿你新的一年一切顺利"]),
}  # fmt: skip


def note_chats(rng: random.Random) -> Iterator[Turns]:
    asks = ("给{w}写一张{k}的卡片。", "写一封{k}的短信给{w}。", "帮我给{w}写一封{k}信。", "请写几句话给{w}，表示{k}。")
    for kind, (form, reasons) in NOTES.items():
        for who in ("妈妈", "爸爸", "老师", "朋友", "奶奶", "邻居", "同学"):
            for ask in asks:
                yield [ask.format(w=who, k=kind), form.format(w=who, r=rng.choice(reasons))]


# -------------------------------------------------------------------------------------------------- stories and sources


def story_chats(rng: random.Random, count: int) -> Iterator[Turns]:
    for _ in range(count):
        way = rng.random()
        given = {"thing": rng.choice(chinese_stories.THINGS)} if way < 0.12 else {}
        text, about = chinese_stories.tell(rng, **given)
        ask = chinese_stories.wish(rng, about)
        if given:
            ask = rng.choice(("讲一个{hero}和{thing}的故事。", "写一个故事，里面要有{hero}和{thing}。")).format(**about)
        elif way > 0.8:
            ask = rng.choice(chinese_stories.BEDTIME if about["plot"] == "sleep" else chinese_stories.OPEN_WISHES)
        chat = [
            loosely(ask, rng) if rng.random() < 0.3 else ask,
            text if rng.random() < 0.9 else f"好的，给你讲一个故事。{text}",
        ]
        if rng.random() < 0.15:
            chat += rng.choice((["谢谢，真好听！", "不客气，你喜欢我很高兴。"], [f"{about['hero']}叫什么名字？", f"它叫{about['name']}。" if about["he"] == "它" else f"名字叫{about['name']}。"],
                                ["谁帮助了它？" if about["he"] == "它" else "故事里还有谁？", f"是{about['friend']}。"] if about["plot"] in ("lost", "learning") else ["我很喜欢这个故事。", "太好了！要不要再听一个？"]))  # fmt: skip
        yield chat


def translation_chats(raw: Path, percent: int) -> Iterator[Turns]:
    """Short pairs, one way or the other by their place; some with a second one after the first."""
    pairs = [
        pair for pair in chinese.sentence_pairs(raw / "tatoeba_cmn_eng") if len(pair[1]) <= 18 and len(pair[0]) < 60
    ]
    for at, (english, han) in enumerate(pairs):
        if chinese.share(english, percent):
            first = chinese.translation(english, han, at * 7 + at // 12, into_chinese=at % 2 == 0)
            if at % 9 == 0 and at + 1 < len(pairs):
                next_ = pairs[at + 1]
                yield [
                    *first,
                    (f"And this? {next_[0]}" if at % 2 == 0 else f"这句呢？{next_[1]}"),
                    next_[1] if at % 2 == 0 else next_[0],
                ]
            else:
                yield first


def sentence_chats(raw: Path, words: dict[str, str], rng: random.Random, most: int = 8) -> Iterator[Turns]:
    """Sentences of Tatoeba that hold a word of the table, as answers to a wish for one."""
    found: dict[str, int] = {}
    usable = [han for han in words.values() if len(han) >= 2]
    for _, sentence in chinese.sentence_pairs(raw / "tatoeba_cmn_eng"):
        word = next((han for han in usable if han in sentence), None)
        if word and 6 <= len(sentence) <= 24 and sentence.endswith("。") and found.get(word, 0) < most:
            found[word] = found.get(word, 0) + 1
            yield [
                rng.choice(
                    ("用“{}”造句。", "请用“{}”造一个句子。", "用“{}”写一句话。", "给我一个有“{}”的句子。")
                ).format(word),
                sentence,
            ]


def encyclopaedia_chats(raw: Path, percent: int) -> Iterator[Turns]:
    """What a thing is: the first sentence of a lead that begins as a definition."""
    for title, paragraphs in chinese.articles(raw / "zhwiki_simplified"):
        first = paragraphs[0].split("。")[0] + "。"
        plain = (
            re.match(rf"{re.escape(title)}是[^，。]{{2,}}", first)
            and len(title) <= 6
            and "·" not in title
            and chinese.simplified(title)
        )
        if plain and 15 <= len(first) <= 70 and not re.search(r"\d", first) and chinese.share(title, percent):
            yield [f"{title}是什么？" if chinese.share(title + "?", 50) else f"什么是{title}？", first]


THANKS = [
    ("谢谢！", "不客气！"),
    ("谢谢你", "不用谢，还有别的问题吗？"),
    ("多谢。", "很高兴能帮到你。"),
    ("好的，谢谢。", "不客气，随时来问我。"),
]
BYES = [("再见！", "再见！祝你愉快。"), ("拜拜", "拜拜！下次再聊。"), ("我要走了。", "再见，欢迎再来！")]
HELLOS = [
    ("你好！", "你好！有什么可以帮你的？"),
    ("你好", "你好！想聊点什么？"),
    ("嗨", "嗨！有什么可以帮忙的吗？"),
    ("早上好！", "早上好！有什么可以帮你的？"),
]


def long_chats(singles: list[Turns], english: list[Turns], rng: random.Random, count: int) -> Iterator[Turns]:
    """Two to four short exchanges in a row, greeted and thanked now and then; one in eight changes the language."""
    short = [
        chat
        for chat in singles
        if len(chat) == 2
        and len(chat[1]) < 110
        and not chat[0].startswith(("你好", "嗨", "早"))
        and chat[1][-1] != "？"
    ]
    for _ in range(count):
        chat: Turns = list(rng.choice(HELLOS)) if rng.random() < 0.4 else []
        for pair in rng.sample(short, rng.choice((1, 2, 2, 3))):
            chat += pair
        if rng.random() < 0.125:
            chat += rng.choice(english)
        chat += list(rng.choice(THANKS)) if rng.random() < 0.35 else []
        chat += list(rng.choice(BYES)) if rng.random() < 0.2 else []
        if len(chat) > 2:
            yield chat


def all_chats(raw: Path, english: list[Turns], seed: int = 21) -> dict[str, list[Turns]]:
    """Every kind of Chinese chat by name; `english` are short English ones for chats that change the language."""
    rng = random.Random(seed)
    tables: Table = tomllib.loads((TALK / "zh_tables.toml").read_text(encoding="utf-8"))
    makers: dict[str, Callable[[], Iterator[Turns]]] = {
        "zh_identity": lambda: talk("zh_identity", rng, 5),
        "zh_names": lambda: names(rng, 400),
        "zh_smalltalk": lambda: talk("zh_smalltalk", rng, 4),
        "zh_refusals": lambda: talk("zh_refusals", rng, 4),
        "zh_explain": lambda: talk("zh_explain", rng, 4),
        "zh_howto": lambda: talk("zh_howto", rng, 4),
        "zh_dialogs": lambda: dialogs(rng, tables["word"], 30),
        "zh_animals": lambda: animal_chats(tables["animal"], rng),
        "zh_countries": lambda: country_chats(tables["country"], rng),
        "zh_words": lambda: word_chats(tables["word"], rng),
        "zh_phrases": lambda: word_chats(tables["phrase"], rng),
        "zh_games": lambda: game_chats(tables, rng),
        "zh_groups": lambda: group_chats(tables["group"], rng),
        "zh_numbers": lambda: number_chats(rng),
        "zh_comparisons": lambda: comparison_chats(rng),
        "zh_poems": lambda: poem_chats(rng),
        "zh_notes": lambda: note_chats(rng),
        "zh_stories": lambda: story_chats(rng, 5000),
        "zh_translations": lambda: translation_chats(raw, 40),
        "zh_sentences": lambda: sentence_chats(raw, tables["word"], rng),
        "zh_encyclopaedia": lambda: encyclopaedia_chats(raw, 40),
    }
    kinds = {name: list(make()) for name, make in makers.items()}
    alone = [
        chat
        for kind, found in kinds.items()
        if kind not in ("zh_stories", "zh_translations", "zh_encyclopaedia")
        for chat in found
    ]
    kinds["zh_long"] = list(long_chats(alone, english, rng, 4000))
    return kinds
