"""The Chinese raw data folders of the embedded model, each turned into clean documents (as sources.py does in English).

Simplified characters are those of GB 2312, the national standard set of 6,763: what is not in it is traditional, Japanese
or too rare for a vocabulary of 8,192.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sources import RUDE, Document, alternating, chat, read_jsonl, share, tidy

HAN = re.compile(r"[\u4e00-\u9fff]")
MARKS = set("，。？！：；、（）《》“”‘’…—·～％")

# Topics that drop a paragraph: this model answers strangers and is far too small to handle them with care.
GRAVE = re.compile(
    "性交|性爱|做爱|性行为|性侵|性别认同|同性恋|双性恋|色情|情色|成人影片|AV女优|女优|强奸|轮奸|卖淫|妓|嫖|裸|乳房|阴茎|阴道|生殖器|手淫|"
    "自杀|自尽|屠杀|屠城|虐待|虐杀|酷刑|斩首|凶杀|谋杀|杀害|杀死|杀人|遇害|尸体|遗体|血腥|恐怖分子|恐怖袭击|恐怖组织|毒品|海洛因|冰毒|吸毒|"
    "纳粹|希特勒|种族主义|种族灭绝|种族歧视|奴隶|反犹|法西斯|战犯|慰安妇|毛泽东|邓小平|江泽民|胡锦涛|习近平|蒋介石|蒋经国|周恩来|斯大林|列宁|"
    "特朗普|川普|奥巴马|克林顿|布什|普京|安倍|金正恩|金日成|共产党|国民党|民进党|总书记|总统|首相|主席|政变|独裁|文化大革命|文革|六四|天安门|"
    "法轮|中共|革命党|解放军|政治局|中央委员|书记|日军|国军|军区|台独|藏独|疆独|达赖|分裂|镇压|示威|抗议|选举|议员|政党|右派|妈的|他妈|操你|傻逼|贱人|婊子|混蛋|王八蛋|支那|鬼子"
)
ODD = re.compile(r"-\{|\}-|\|\||[<>{}\[\]=*#_\\^~]|https?:|www\.|《》|“”|‘’|「」|（）|ISBN|&[a-z]+;|模板|参见|维基")

HOLE = re.compile(
    r"於|··|^[是的和及与也而，、]|坐标为，|、[，。]|称为[，。]|位于[，。]|由[，。]|由(创建|率领|出版|执导|主演|担任|制作)"
)  # a link was lost
MANY_ALIKE = {
    "环形山": 8,
    "飓风": 30,
    "热带风暴": 30,
    "站台": 30,
    "小行星": 20,
}  # subject: how many articles in a hundred stay


@cache
def is_simplified_character(ch: str) -> bool:
    try:
        ch.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def simplified(text: str) -> bool:
    """Whether every character is ASCII, Chinese punctuation or a simplified Chinese character."""
    return all(ch.isascii() or ch in MARKS or (HAN.match(ch) and is_simplified_character(ch)) for ch in text)


FULL_WIDTH = {",": "，", ".": "。", "?": "？", "!": "！", ":": "：", ";": "；", "(": "（", ")": "）"}
ONE_FORM = str.maketrans({"「": "“", "」": "”", "『": "‘", "』": "’", "．": "·", "•": "·", "‧": "·", "・": "·", "〈": "《",
                          "〉": "》", "－": "-", "–": "-", "━": "—", "─": "—", "％": "%", "／": "/", "\u3000": " ", "\u00a0": " ", "〜": "～"})  # fmt: skip


def tidy_chinese(text: str) -> str:
    """One form of every mark, full-width marks after Chinese characters, no spaces between them."""
    text = text.translate(ONE_FORM)
    text = re.sub(r"(?<=[\u4e00-\u9fff”》）])[,.?!:;()]|[()](?=[\u4e00-\u9fff])", lambda m: FULL_WIDTH[m[0]], text)
    text = re.sub(r'"([^"]{1,40})"', r"“\1”", text)
    text = re.sub(
        r"(?<=[\u4e00-\u9fff，。？！：；、（）《》“”]) +(?=[\u4e00-\u9fff，。？！：；、（）《》“”])", "", text
    )
    text = re.sub(r"。{2,}", "……", text)
    return re.sub(r"([？！，])\1+", r"\1", text).strip()


# ----------------------------------------------------------------------------------------------------- encyclopaedia


def plain_paragraph(text: str) -> str:
    """A paragraph without brackets of pronunciations and other scripts, and without the holes that lost links leave."""
    text = tidy_chinese(text)
    text = re.sub(
        r"（[^（）]*(?:[A-Za-zÀ-ɏͰ-ϿЀ-ӿ\u3040-\u30ff\uac00-\ud7af]|：）|，）|：，|即|又译|又称|简称|今)[^（）]*）",
        "",
        text,
    )
    text = re.sub(r"（[，、；：\s]*）|《》|“”", "", text)
    return re.sub(r"，(?=[，。])|(?<=（)[，；、]", "", text)


def readable(paragraph: str) -> bool:
    """Running Chinese text: whole sentences, few digits and foreign letters, nothing grave, no leftovers of markup."""
    size = max(len(paragraph), 1)
    han, digits = len(HAN.findall(paragraph)), sum(ch.isdigit() for ch in paragraph)
    latin = len(re.findall("[A-Za-z]", paragraph))
    return (
        size >= 36 and han > 0.74 * size and digits < 0.09 * size and latin < 0.08 * size
        and paragraph.endswith(("。", "！", "？", "”", "）")) and paragraph.count("、") < 0.08 * size
        and simplified(paragraph) and not ODD.search(paragraph) and not HOLE.search(paragraph) and not GRAVE.search(paragraph)
    )  # fmt: skip


def articles(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(title, readable paragraphs) of every article that keeps at least one; a grave lead drops the article."""
    for record in read_jsonl(folder / "zhwiki.jsonl"):
        title, paragraphs = tidy_chinese(record["title"]), record["text"].split("\n")
        if GRAVE.search(title + paragraphs[0]):
            continue
        if any(subject in record["text"] and not share(title, percent) for subject, percent in MANY_ALIKE.items()):
            continue
        whole = paragraphs if len(record["text"]) < 3000 else paragraphs[:-1]  # the last one is cut
        kept = [text for paragraph in whole if readable(text := plain_paragraph(paragraph))]
        if kept:
            yield title, kept


def encyclopaedia_documents(folder: Path) -> Iterator[Document]:
    """An article's title and paragraphs as one text; a lead that begins as a definition also answers a question."""
    for title, paragraphs in articles(folder):
        if re.match(rf"《?{re.escape(title)}》?，?(是|指|为)", paragraphs[0]) and len(title) < 12 and simplified(title):
            ask = "什么是{}？" if share(title, 50) else "请介绍一下{}。"
            yield chat(ask.format(title), paragraphs[0])
            paragraphs = paragraphs[1:]
        if paragraphs:
            yield {"text": "\n\n".join([title, *paragraphs] if simplified(title) else paragraphs)}


# --------------------------------------------------------------------------------------------------------- dialogues


def dialogues(folder: Path) -> Iterator[list[str]]:
    """Two people about films, music and travel; what names a price or an hour is left out, since it has long changed."""
    for record in read_jsonl(folder / "dialogues.jsonl"):
        turns = [tidy_chinese(turn) for turn in record["t"]]
        turns = [turn if turn.endswith(("。", "？", "！", "…", "”")) else turn + "。" for turn in turns]
        said = "".join(turns)
        if (
            len(turns) >= 4
            and simplified(said)
            and not GRAVE.search(said)
            and len(re.findall("[A-Za-z]", said)) < 0.1 * len(said)
        ):
            yield alternating(turns)


def dialogue_documents(folder: Path) -> Iterator[Document]:
    return (chat(*turns) for turns in dialogues(folder))


# ------------------------------------------------------------------------------------------------------- translation

TO_CHINESE = ("Translate into Chinese: {}", "How do you say this in Chinese? {}", "Say this in Chinese: {}", "Please translate this sentence into Chinese: {}",
              "What is \"{}\" in Chinese?", "Put this into Chinese: {}", "Translate to Chinese: {}", "把这句话翻译成中文：{}", "请翻译成中文：{}",
              "“{}”用中文怎么说？", "{} 翻译成中文。", "这句英文是什么意思？{}")  # fmt: skip
TO_ENGLISH = ("把这句话翻译成英文：{}", "请把下面的句子译成英语：{}", "“{}”用英语怎么说？", "翻译成英文：{}", "这句话用英文怎么说？{}", "请用英语说：{}", "把下面这句话翻成英语：{}",
              "Translate into English: {}", "What does this mean in English? {}", "Translate this Chinese sentence: {}", "Please translate to English: {}",
              "What does “{}” mean?")  # fmt: skip


def sentence_pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """(English, Chinese), plain, each English sentence and each Chinese one once."""
    seen: set[str] = set()
    for line in (folder / "cmn.txt").read_text(encoding="utf-8").split("\n"):
        if line.count("\t") < 1:
            continue
        english, chinese = tidy(line.split("\t")[0]), tidy_chinese(line.split("\t")[1])
        if not chinese.endswith(("。", "？", "！")):
            continue
        plain = english.isascii() and simplified(chinese) and not RUDE.search(english) and not GRAVE.search(chinese)
        fits = 2 <= len(chinese) <= 40 and len(HAN.findall(chinese)) >= 0.7 * len(chinese)
        if plain and fits and english not in seen and chinese not in seen and not re.search("[A-Za-z]", chinese):
            seen |= {english, chinese}
            yield english, chinese


def translation(english: str, chinese: str, at: int, into_chinese: bool) -> list[str]:
    """One chat; which words ask for it depends on `at`."""
    asks, source, target = (TO_CHINESE, english, chinese) if into_chinese else (TO_ENGLISH, chinese, english)
    return [asks[at % len(asks)].format(source), target]


def translation_documents(folder: Path) -> Iterator[Document]:
    """Every pair both ways."""
    for at, (english, chinese) in enumerate(sentence_pairs(folder)):
        yield chat(*translation(english, chinese, at * 7 + at // 12, into_chinese=True))
        yield chat(*translation(english, chinese, at * 5 + at // 12, into_chinese=False))
