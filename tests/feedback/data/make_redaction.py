"""Makes redaction.jsonl: lines a customer might write, with what is personal in them. All values are invented; checksums are right.

Run it as `python -m tests.feedback.data.make_redaction`; the file is committed and a test sees that it is what this writes.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
Line = dict[str, object]
ZH = {
    "PHONE": [
        "我的手机是{}，请尽快联系",
        "电话{}",
        "打{}找我",
        "收件人王女士{}上海市静安区",
        "{}，这是我号码",
        "麻烦改成{}谢谢",
        "他的号{}呢",
        "手机号:{}",
    ],
    "EMAIL": ["邮箱{}", "发到{}可以吗", "我的邮箱是{}，谢谢", "{}收不到验证码", "请把发票寄到{}。", "邮件:{}，急"],
    "CN_ID": ["身份证号{}", "实名认证用{}行不行", "我的身份证是{}，请核对", "证件号码：{}", "{}这个通不过实名"],
    "CARD": ["退到卡号{}", "银行卡{}", "我的信用卡是{}，被扣了两次", "卡{}退款没到", "请退回{}这张卡"],
}
EN = {
    "PHONE": ["my number is {}", "call me at {} please", "phone: {}", "reach me on {} after six", "text {} when it ships", "tel {}."],
    "EMAIL": ["my email is {}", "send it to {} please", "{} never got the code", "write to {}, thanks", "is {} on file?"],
    "CN_ID": ["my ID number is {}", "the identity card says {}", "use {} to verify me", "ID: {}"],
    "CARD": ["my card is {}", "charged twice on {}", "refund card {} please", "card number {} was declined", "put it back on {}"],
}
ORDERS_ZH = [
    "订单号{}到哪了",
    "我的订单{}还没发货",
    "单号：{}",
    "快递单号{}三天没动",
    "查一下订单{}",
    "退货编号{}",
    "{}这个订单取消",
    "流水号{}",
]
ORDERS_EN = [
    "order {} has not arrived",
    "my order number is {}",
    "tracking {} is stuck",
    "where is order #{}",
    "cancel {} please",
    "invoice no. {}",
]
WIDE = str.maketrans("0123456789Xx@.-", "０１２３４５６７８９Ｘｘ＠．－")


def luhn_digit(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def id_digit(digits: str) -> str:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) % 11]


def some_digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def phone(rng: random.Random, language: str) -> str:
    if language == "en" and rng.random() < 0.5:
        area, exchange, line = rng.randint(201, 989), rng.randint(200, 999), some_digits(rng, 4)
        return rng.choice(["({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "1-{}-{}-{}"]).format(area, exchange, line)
    if language == "en" and rng.random() < 0.3:
        return f"+44 7{some_digits(rng, 3)} {some_digits(rng, 6)}"
    if language == "zh" and rng.random() < 0.15:
        return f"{rng.choice(['010', '021', '0755', '0571'])}-{rng.randint(2, 8)}{some_digits(rng, 7)}"
    plain = f"1{rng.choice('3456789')}{some_digits(rng, 9)}"
    grouped = f"{plain[:3]}-{plain[3:7]}-{plain[7:]}"
    shapes = [plain, plain, grouped, grouped.replace("-", " "), f"+86 {plain}", f"86{plain}", " ".join(plain), f"0086-{plain}"]
    han = plain.translate(str.maketrans("0123456789", "零一二三四五六七八九"))
    return rng.choice([*shapes, *([han] if language == "zh" else [])])


def email(rng: random.Random, language: str) -> str:
    name = rng.choice(["li.wei", "anna_k", "zhang88", "m-jones", "wang+shop", some_digits(rng, 9), "x"]) + rng.choice(["", "1", "2024"])
    host = rng.choice(["qq.com", "163.com", "example.com", "mail.example.co.uk", "Example.ORG", "sub.example.com.cn"])
    if language == "en" and rng.random() < 0.15:
        return f"{name} at {host.replace('.', ' dot ')}"
    return rng.choice(["{}@{}", "{}@{}", "{}@{}", "{} @ {}", "{}[at]{}"]).format(name, host)


def cn_id(rng: random.Random, language: str) -> str:
    province, day = (
        rng.choice([110101, 310104, 440305, 510107, 652301]),
        f"{rng.randint(1950, 2008)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}",
    )
    body = f"{province}{day}{some_digits(rng, 3)}"
    whole = body + id_digit(body)
    return rng.choice(
        [whole, whole, whole.lower(), f"{whole[:6]} {whole[6:14]} {whole[14:]}", " ".join(whole[n : n + 3] for n in range(0, 18, 3))]
    )


def card(rng: random.Random, language: str) -> str:
    prefix, length = rng.choice([("62", 16), ("6217", 19), ("6228", 19), ("4", 16), ("51", 16), ("37", 15), ("35", 16)])
    body = prefix + some_digits(rng, length - len(prefix) - 1)
    whole = body + luhn_digit(body)
    fours = " ".join(whole[n : n + 4] for n in range(0, length, 4))
    return rng.choice([whole, whole, fours, fours.replace(" ", "-")])


def order(rng: random.Random) -> str:
    day = f"20{rng.randint(20, 26)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    makers: list[Callable[[], str]] = [
        lambda: day + some_digits(rng, 10),
        lambda: day + some_digits(rng, 8),
        lambda: day + some_digits(rng, 4),
        lambda: f"{day}-{some_digits(rng, 4)}",
        lambda: rng.choice("123456789") + some_digits(rng, 18),
        lambda: rng.choice("123456789") + some_digits(rng, 15),
        lambda: rng.choice("123456789") + some_digits(rng, 11),
        lambda: rng.choice("123456789") + some_digits(rng, 8),
        lambda: f"{rng.choice(['KF', 'SF', 'YT', 'JD', 'ORD-', 'A'])}{rng.choice('123456789')}{some_digits(rng, rng.choice([8, 10, 12]))}",
        lambda: f"1Z{some_digits(rng, 3)}AA{some_digits(rng, 10)}",
    ]
    return rng.choice(makers)()


def lines() -> list[Line]:
    rng = random.Random(20)
    made: list[Line] = []
    for kind, maker in (("PHONE", phone), ("EMAIL", email), ("CN_ID", cn_id), ("CARD", card)):
        for number in range(90):
            language, shapes = ("zh", ZH[kind]) if number % 2 else ("en", EN[kind])
            value = maker(rng, language)
            value = value.translate(WIDE) if language == "zh" and rng.random() < 0.2 else value
            made.append({"text": rng.choice(shapes).format(value), "personal": [[kind, value]]})
    for number in range(220):
        made.append({"text": rng.choice(ORDERS_ZH if number % 2 else ORDERS_EN).format(order(rng)), "personal": []})
    return made


def main() -> None:
    with (HERE / "redaction.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines())


if __name__ == "__main__":
    main()
