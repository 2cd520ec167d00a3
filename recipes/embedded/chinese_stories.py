"""A small story grammar in Chinese, as stories.py is in English: a hero, a friend, a plot of steps, several ways to say each.

tell(rng, hero="小松鼠")    (story, what it is about)
"""

from __future__ import annotations

import random

HEROES = ["小兔子", "小猫", "小狗", "小熊", "小狐狸", "小鸭子", "小猪", "小羊", "小马", "小猴子", "小老鼠", "小刺猬", "小鹿", "小青蛙", "小乌龟",
          "小象", "小猫头鹰", "小企鹅", "小蚂蚁", "小蜜蜂", "小鲸鱼", "小老虎", "小狮子", "小龙"]  # fmt: skip
PEOPLE = [
    "小女孩",
    "小男孩",
    "老爷爷",
    "老奶奶",
    "水手",
    "农夫",
    "公主",
    "王子",
    "木匠",
    "渔夫",
    "画家",
    "面包师",
    "小裁缝",
    "小机器人",
    "牧羊人",
]
FRIENDS = [
    "小兔子",
    "小猫",
    "小狗",
    "小熊",
    "小狐狸",
    "小鸭子",
    "小猴子",
    "小刺猬",
    "小鹿",
    "小乌龟",
    "小鸟",
    "小松鼠",
    "老山羊",
    "小燕子",
    "猫头鹰",
]
NAMES = [
    "乐乐",
    "豆豆",
    "明明",
    "小雨",
    "多多",
    "贝贝",
    "阿福",
    "丁丁",
    "圆圆",
    "安安",
    "米米",
    "朵朵",
    "冬冬",
    "青青",
    "毛毛",
    "平平",
]
PLACES = [
    "大森林里",
    "小河边",
    "海边的小村子里",
    "高高的山上",
    "一座小城里",
    "绿色的草原上",
    "一片竹林里",
    "湖边的木屋里",
    "一座老磨坊旁边",
    "开满花的山谷里",
]
TRAITS = ["善良的", "勇敢的", "害羞的", "好奇的", "聪明的", "快乐的", "安静的", "调皮的", "温柔的", "懒惰的"]
LOVES = ["看云", "唱歌", "画画", "听风的声音", "数星星", "在草地上跑", "看书", "讲故事", "收集石头", "吹笛子"]
THINGS = [
    "红气球",
    "小铃铛",
    "旧地图",
    "蓝围巾",
    "金钥匙",
    "小提灯",
    "木笛",
    "纸船",
    "小镜子",
    "绿雨伞",
    "银扣子",
    "小风筝",
]
FOODS = ["热汤", "苹果", "蜂蜜蛋糕", "坚果", "甜面包", "一碗热粥", "草莓", "红薯"]

OPENINGS = [
    "从前，{place}住着{a_hero}，名字叫{name}。", "很久很久以前，{place}有{a_hero}，大家叫{him}{name}。", "{place}，住着{a_trait_hero}，名叫{name}。",
    "{name}是{a_trait_hero}，住在{place}。",
]  # fmt: skip
LIKINGS = ["{name}最喜欢{love}。", "{he}每天都要{love}。", "大家都知道{name}爱{love}。"]

# plot: (its theme in words, the steps, each with several ways to say it)
PLOTS: dict[str, tuple[str, list[list[str]]]] = {
    "lost": ("丢失的东西", [
        ["一天早上，{name}发现自己的{thing}不见了。", "有一天，{name}丢了心爱的{thing}。"],
        ["{he}找遍了整个屋子，还是没有找到。", "{he}在床下找，在门后找，哪里都没有。"],
        ["“怎么办呢？”{name}急得快要哭了。", "{name}坐在石头上，心里很难过。"],
        ["这时候，{friend}走过来问：“你怎么了？”", "{friend}听见了，跑过来说：“别急，我帮你找。”"],
        ["他们一起沿着小路慢慢找。", "他们一起走过小桥，找遍了草地。"],
        ["终于，他们在一棵大树下看见了{thing}。", "最后，他们发现{thing}挂在高高的树枝上。"],
        ["“谢谢你！”{name}高兴地说，“有朋友真好。”", "{name}抱住{friend}，说：“谢谢你陪我找。”"]]),
    "friendship": ("友谊", [
        ["{he}没有朋友，常常一个人玩。", "可是{name}总是一个人，觉得很孤单。"],
        ["有一天，{he}遇见了{friend}，{friend}也是一个人。", "一天下午，{friend}从门前走过。"],
        ["“你好，你愿意和我一起玩吗？”{name}小声地问。", "{name}鼓起勇气说：“我们一起玩好吗？”"],
        ["{friend}笑着说：“当然愿意！”", "“太好了！”{friend}说，“我正想找个朋友。”"],
        ["他们一起{love}，一直玩到太阳下山。", "他们在草地上跑啊跳啊，笑声传得很远。"],
        ["天黑的时候，他们一起吃了{food}。", "{name}把{food}分给{friend}一半。"],
        ["“明天你还来吗？”“来，天天都来！”从那以后，他们成了最好的朋友。", "从此，{name}再也不孤单了。"]]),
    "brave": ("勇敢", [
        ["{name}有一个秘密：{he}很怕黑。", "{name}什么都好，就是怕黑。"],
        ["一天晚上，外面传来喊声：“救命啊！”", "有一天夜里，{he}听见有人在哭。"],
        ["原来是{friend}掉进了一个坑里。", "那是{friend}的声音，它在黑黑的树林里迷路了。"],
        ["{name}的心怦怦跳，可是{he}还是提着灯走了出去。", "{name}很害怕，但是{he}想：朋友需要我。"],
        ["{he}一步一步走进黑暗，大声喊：“别怕，我来了！”", "{he}一边走一边唱歌，给自己壮胆。"],
        ["{he}找到一根绳子，把{friend}救了出来。", "{he}终于找到了{friend}，带着它回了家。"],
        ["“你真勇敢！”{friend}说。从那天起，{name}不再怕黑了。", "{name}明白了：勇敢不是不害怕，而是害怕的时候也往前走。"]]),
    "sharing": ("分享", [
        ["有一天，{name}得到了一大篮{food_raw}。", "秋天，{name}捡到了满满一篮{food_raw}。"],
        ["“这些都是我的！”{he}把篮子藏了起来。", "{he}想一个人慢慢吃。"],
        ["这时，{friend}来敲门：“我好饿啊。”", "{friend}从门前走过，肚子饿得咕咕叫。"],
        ["{name}看看篮子，又看看{friend}，想了很久。", "{name}开始什么也没说，心里却不好受。"],
        ["“进来吧，”{he}终于说，“我们一起吃。”", "{he}打开门说：“来，我分给你一半。”"],
        ["他们坐在窗前，边吃边讲故事，觉得{food_raw}特别甜。", "两个人一起吃，味道好像更香了。"],
        ["冬天来了，{friend}也给{name}送来了{food}。", "{name}明白了：分享能让快乐变成两份。"]]),
    "journey": ("旅行", [
        ["一天，{name}想看看山的那边有什么。", "有一天早上，{name}想去看看大世界。"],
        ["{he}带上{food}和{thing}出发了。", "{he}背上小包，走上了一条长长的路。"],
        ["{he}走过田野，穿过树林，蹚过小河。", "路很远，{he}走了一天又一天。"],
        ["在桥边，{he}遇见了{friend}。“带上我吧！”{friend}说。", "第三天，{he}遇到了认识路的{friend}，他们就结伴一起走。"],
        ["他们终于爬上了山顶，看见了蓝蓝的大海。", "傍晚，他们站在山顶上，大海闪着金色的光。"],
        ["“真美啊！”{name}说，“不过，我有点想家了。”", "他们看了很久，一直看到星星出来。"],
        ["回到家，{name}把看到的一切讲给大家听。", "回家以后，{name}觉得自己的小屋也很美。"]]),
    "wish": ("愿望", [
        ["一天晚上，{name}看见一颗流星，就许了一个愿。", "夜里，一颗星星落下来，{name}闭上眼睛许愿。"],
        ["“我想飞到天上去。”{he}说。", "“要是我会飞就好了。”{he}轻轻地说。"],
        ["第二天早上，{friend}站在窗前说：“我听见了你的愿望。”", "第二天，{friend}来了：“我知道你想要什么。”"],
        ["“我没有翅膀给你，但是我可以带你去一个地方。”", "“跟我来吧，我给你看一样东西。”"],
        ["他们爬上最高的山，风呼呼地吹着。", "他们爬上一棵大树，看见了整片土地。"],
        ["{name}张开双臂，觉得自己像一只小鸟。", "风托着{name}，就像在飞一样。"],
        ["“谢谢你，”{name}说，“这比真的飞还要好。”", "那天晚上，{name}做了一个飞起来的梦。"]]),
    "learning": ("学习", [
        ["{name}想学游泳，可是怎么也学不会。", "{name}想学一首新歌，可是总唱错。"],
        ["第一天失败了，第二天又失败了。", "{he}试了一次又一次，还是不行。"],
        ["“我永远学不会了。”{he}难过地说。", "{he}想放弃了。"],
        ["{friend}听见了，坐到{he}身边。", "这时{friend}走过来，摇了摇头。"],
        ["“没有人第一天就会，”{friend}说，“每天练一点点就好。”", "“我当年学了整整一年呢。”{friend}说，“再试试吧。”"],
        ["于是，{name}每天早上都去练习。", "{name}听了，又开始一遍一遍地练。"],
        ["过了几个星期，{he}终于学会了。大家都为{him}鼓掌。", "有一天，{he}忽然发现自己会了！{name}再也不轻易说放弃了。"]]),
    "storm": ("暴风雨", [
        ["有一天，来了一场大风暴。", "一天夜里，风呼呼地刮，雨哗哗地下。"],
        ["树枝被吹断了，小河的水也涨高了。", "大家都躲进了自己的家。"],
        ["{name}听见有人轻轻地敲门。", "咚咚咚，门外有声音。"],
        ["门口站着{friend}，全身都湿透了。", "原来是{friend}，它冷得发抖。"],
        ["“我的家被冲走了，我能在这里躲一躲吗？”{friend}问。", "“我可以进来吗？”{friend}小声地问。"],
        ["“快进来吧！”{name}生起火，端来了{food}。", "{name}给了它一条毯子，还有{food}。"],
        ["第二天太阳出来了，他们一起盖了一座新房子。", "雨停以后，他们成了好邻居。"]]),
    "honesty": ("诚实", [
        ["有一天，{name}不小心打碎了奶奶的杯子。", "一天，{name}偷偷吃掉了最后一块蛋糕。"],
        ["没有人看见。", "{he}看看四周，一个人也没有。"],
        ["“就说是风吹的吧。”{he}想。", "“我不说，就没有人知道。”{he}想。"],
        ["可是到了晚上，{name}怎么也睡不着。", "可是一整天，{he}心里都很不舒服。"],
        ["{he}去问{friend}该怎么办。{friend}说：“说真话吧。”", "“说出来吧，”{friend}对{him}说，“说出来就好了。”"],
        ["第二天，{name}对奶奶说：“是我做的，对不起。”", "早上，{name}鼓起勇气，把事情告诉了奶奶。"],
        ["奶奶笑了：“谢谢你告诉我真话。”{name}心里轻松极了。", "奶奶摸摸{name}的头，说：“诚实的孩子最可爱。”"]]),
    "treasure": ("宝藏", [
        ["一天，{name}在瓶子里找到一张旧地图。", "有一天，{he}在石头下面发现了一张地图。"],
        ["地图上画着一个红色的叉。“是宝藏！”{name}叫了起来。", "“这一定是去找宝藏的路。”{he}想。"],
        ["{he}叫上{friend}，马上就出发了。", "{he}请{friend}一起去找。"],
        ["他们走过小桥，来到一棵大树下。", "他们跟着地图，走进了深深的山谷。"],
        ["他们挖啊挖，挖出了一个小盒子。", "他们挖了很久，终于碰到了一个硬硬的东西。"],
        ["盒子里没有金子，只有一封信。", "可是里面只有一张纸。"],
        ["上面写着：“最好的宝藏，是和你一起挖的朋友。”他们都笑了。", "信上说：“有朋友的人，就是最富有的人。”"]]),
    "helping": ("帮助别人", [
        ["有一天，{name}看见{friend}被网缠住了。", "回家的路上，{he}看见{friend}的脚受伤了。"],
        ["“别动，我来帮你。”{name}说。", "{name}没有多想，马上跑过去帮忙。"],
        ["{he}小心地帮了很久，终于帮好了。", "花了很长时间，但是{he}没有放弃。"],
        ["“谢谢你，我不会忘记的。”{friend}说。", "“以后我也会帮助你。”{friend}说。"],
        ["后来，{name}渐渐忘了这件事。", "日子一天天过去了。"],
        ["冬天，{name}在大雪里迷了路。", "一天，大雾来了，{name}找不到回家的路。"],
        ["忽然，{he}听见{friend}的声音：“跟我来！”{friend}把{him}带回了家。", "{friend}走过来，带着{him}回了家。原来，做好事总会有回报。"]]),
    "birthday": ("生日", [
        ["这一天是{name}的生日，可是没有人提起。", "{name}的生日到了，{he}等着朋友们来。"],
        ["{he}等了一个上午，谁也没有来。", "到了中午，还是没有一个客人。"],
        ["“大家都忘了我吧。”{he}难过地想。", "{he}叹了一口气，一个人出去散步。"],
        ["忽然，{friend}跑来说：“快来，我们需要你帮忙！”", "路上，{he}碰见了{friend}。“快跟我来！”{friend}说。"],
        ["{name}跟着{friend}跑到大树下。", "他们穿过草地，绕过小山。"],
        ["树下站着所有的朋友，还有{food}和一份礼物。", "那里挂满了彩灯，桌上摆着{food}。"],
        ["“生日快乐，{name}！”大家一起喊。这是{he}最开心的一天。", "大家唱歌跳舞，一直到星星出来。"]]),
    "sleep": ("睡觉", [
        ["一天晚上，{name}怎么也睡不着。", "夜深了，{name}还醒着。"],
        ["{he}数星星，可是星星太多了。", "{he}翻来翻去，还是不困。"],
        ["{he}问窗外的{friend}：“你睡不着的时候怎么办？”", "{friend}从窗口探进头来：“你怎么还不睡？”"],
        ["“我听风的声音，”{friend}说，“风会讲古老的故事。”", "“我会想一件今天的好事。”{friend}说。"],
        ["{name}躺下来，闭上了眼睛。", "{name}回到床上，试了试这个办法。"],
        ["风在树林里轻轻地唱着歌。", "{he}想起了温暖的阳光和青草的香味。"],
        ["不一会儿，{he}就睡着了。晚安，小宝贝！", "月亮笑了，大地静悄悄的。晚安！"]]),
}  # fmt: skip

WISHES = ["给我讲一个{}的故事。", "讲一个关于{}的故事。", "请讲一个关于{}的故事。", "我想听{}的故事。", "能讲一个{}的故事吗？", "写一个关于{}的故事。",
          "讲个{}的短故事吧。", "写一个短故事，主角是{}。", "你能给我讲讲{}的故事吗？", "编一个{}的故事。"]  # fmt: skip
OPEN_WISHES = ["讲个故事。", "给我讲个故事。", "给我讲一个故事吧。", "请讲一个故事。", "你会讲故事吗？讲一个吧。", "我想听故事。", "再讲一个故事。", "说个故事吧。",
               "讲一个短故事。", "写一个小故事。", "讲一个有趣的故事。", "讲一个童话故事。", "能给我讲个故事吗？"]  # fmt: skip
BEDTIME = [
    "讲一个睡前故事。",
    "给我讲个睡前故事吧。",
    "我要睡觉了，讲个故事吧。",
    "我想听睡前故事。",
    "睡觉以前讲个故事好吗？",
]
MEASURES = {"小马": "匹", "小象": "头", "小狮子": "头", "小鲸鱼": "头", "小猪": "头", "小龙": "条", "老爷爷": "位", "老奶奶": "位", "公主": "位",
            "王子": "位", "画家": "位"}  # fmt: skip


def one(noun: str, trait: str = "") -> str:
    """ "一只善良的小猫": the noun with its measure word."""
    return f"一{MEASURES.get(noun, '个' if noun in PEOPLE else '只')}{trait}{noun}"


def pronoun(hero: str) -> str:
    if hero in ("小女孩", "老奶奶", "公主"):
        return "她"
    return "他" if hero in PEOPLE and hero != "小机器人" else "它"


def tell(rng: random.Random, hero: str | None = None, friend: str | None = None, thing: str | None = None,
         place: str | None = None) -> tuple[str, dict[str, str]]:  # fmt: skip
    """(story, what it is about). Who, with whom, what and where may be given; the friend is another animal than the hero."""
    hero = hero or rng.choice(HEROES + PEOPLE)
    friend = friend or rng.choice([each for each in FRIENDS if each not in hero and hero not in each])
    plots = ["lost", "journey"] if thing else list(PLOTS)
    plot, trait = rng.choice(plots), rng.choice(TRAITS)
    he = pronoun(hero)
    about = {
        "hero": hero, "friend": friend, "plot": plot, "trait": trait, "name": rng.choice(NAMES), "place": place or rng.choice(PLACES),
        "love": rng.choice(LOVES), "thing": thing or rng.choice(THINGS), "food": rng.choice(FOODS), "he": he, "him": he,
        "food_raw": rng.choice(("苹果", "坚果", "草莓", "梨")), "a_hero": one(hero), "a_trait_hero": one(hero, trait),
    }  # fmt: skip
    steps = list(PLOTS[plot][1])
    if thing and plot == "journey":
        steps[1] = ["{he}带上{thing}出发了。"]
    sentences = [
        rng.choice(OPENINGS),
        *rng.sample(LIKINGS, rng.choice((0, 1, 1))),
        *(rng.choice(step) for step in steps),
    ]
    return "".join(sentences).format(**about), about


def wish(rng: random.Random, about: dict[str, str]) -> str:
    """A request that this story answers."""
    hero, plot = about["hero"], about["plot"]
    subjects = [
        hero,
        hero,
        f"{hero}和{about['friend']}",
        one(hero, about["trait"]),
        PLOTS[plot][0],
        f"{about['trait']}{hero}",
        f"{hero}{about['name']}",
    ]
    if plot == "lost":
        subjects += [f"{hero}和{about['thing']}"] * 2
    return rng.choice(WISHES).format(rng.choice(subjects))
