"""How each task is put into words, language by language.

Inserted names never have to agree with the words around them: they stand after a
colon, in quotation marks, or where the language does not inflect.  Each phrasing is
two instructions, which rows use in turn, then input, reasoning and output.
"""

from typing import NamedTuple


class Phrasing(NamedTuple):
    instructions: tuple[str, str]
    input: str
    reasoning: str
    output: str


class Vocabulary(NamedTuple):
    """Words that are chosen by the value rather than formatted from it."""

    ordinals: tuple[str, str, str]
    more: tuple[str, str, str]  # of a length, a mass, a volume
    money: str
    money_scale: tuple[int, int]  # tenths are worth 10**n of the unit; decimals shown
    items: tuple[str, ...]
    leap_rules: tuple[str, str, str, str]  # not by 4; by 4; by 100; by 400
    list_separator: str  # between words
    number_separator: str  # a comma could be read as part of a number
    letter_separator: str
    shortest_word: int


VOCABULARY = {
    "en": Vocabulary(
        ordinals=("1", "2", "3"),
        more=("longer", "heavier", "more"),
        money="${}",
        money_scale=(-1, 2),
        items=("Notebook", "Pen", "Bag", "Cup", "Umbrella", "Lamp", "Book", "Scarf"),
        leap_rules=(
            "{year} divided by 4 leaves a remainder of {rest}, so it is not a leap year.",
            "{year} is divisible by 4 but not by 100, so it is a leap year.",
            "{year} is divisible by 100 but not by 400, so it is not a leap year.",
            "{year} is divisible by 400, so it is a leap year.",
        ),
        list_separator=", ",
        number_separator="; ",
        letter_separator="-",
        shortest_word=5,
    ),
    "ja": Vocabulary(
        ordinals=("1", "2", "3"),
        more=("長い", "重い", "多い"),
        money="{}円",
        money_scale=(1, 0),
        items=("ノート", "ペン", "かばん", "カップ", "傘", "ランプ", "本", "マフラー"),
        leap_rules=(
            "{year}を4で割ると{rest}余るので、平年です。",
            "{year}は4で割り切れ、100では割り切れないので、うるう年です。",
            "{year}は100で割り切れ、400では割り切れないので、平年です。",
            "{year}は400で割り切れるので、うるう年です。",
        ),
        list_separator="、",
        number_separator="、",
        letter_separator="・",
        shortest_word=4,
    ),
    "zh": Vocabulary(
        ordinals=("1", "2", "3"),
        more=("长", "重", "多"),
        money="{}元",
        money_scale=(-1, 2),
        items=("笔记本", "钢笔", "书包", "杯子", "雨伞", "台灯", "字典", "围巾"),
        leap_rules=(
            "{year}除以4余{rest}，所以是平年。",
            "{year}能被4整除，但不能被100整除，所以是闰年。",
            "{year}能被100整除，但不能被400整除，所以是平年。",
            "{year}能被400整除，所以是闰年。",
        ),
        list_separator="、",
        number_separator="、",
        letter_separator="、",
        shortest_word=3,
    ),
    "ko": Vocabulary(
        ordinals=("첫", "두", "세"),
        more=("긴", "무거운", "많은"),
        money="{}원",
        money_scale=(2, 0),
        items=("공책", "펜", "가방", "컵", "우산", "전등", "책", "목도리"),
        leap_rules=(
            "{year} ÷ 4의 나머지는 {rest}이므로 평년입니다.",
            "{year}년은 4의 배수이고 100의 배수는 아니므로 윤년입니다.",
            "{year}년은 100의 배수이고 400의 배수는 아니므로 평년입니다.",
            "{year}년은 400의 배수이므로 윤년입니다.",
        ),
        list_separator=", ",
        number_separator="; ",
        letter_separator="-",
        shortest_word=3,
    ),
    "es": Vocabulary(
        ordinals=("1", "2", "3"),
        more=("distancia", "masa", "cantidad"),
        money="{} €",
        money_scale=(-1, 2),
        items=(
            "Cuaderno",
            "Bolígrafo",
            "Bolso",
            "Taza",
            "Paraguas",
            "Lámpara",
            "Libro",
            "Bufanda",
        ),
        leap_rules=(
            "{year} dividido entre 4 da resto {rest}, así que no es bisiesto.",
            "{year} es divisible entre 4, pero no entre 100, así que es bisiesto.",
            "{year} es divisible entre 100, pero no entre 400, así que no es bisiesto.",
            "{year} es divisible entre 400, así que es bisiesto.",
        ),
        list_separator=", ",
        number_separator="; ",
        letter_separator="-",
        shortest_word=5,
    ),
    "fr": Vocabulary(
        ordinals=("1", "2", "3"),
        more=("distance", "masse", "quantité"),
        money="{} €",
        money_scale=(-1, 2),
        items=("Cahier", "Stylo", "Sac", "Tasse", "Parapluie", "Lampe", "Livre", "Écharpe"),
        leap_rules=(
            "{year} divisé par 4 donne un reste de {rest} : ce n'est pas une année bissextile.",
            "{year} est divisible par 4 mais pas par 100 : c'est une année bissextile.",
            "{year} est divisible par 100 mais pas par 400 : ce n'est pas une année bissextile.",
            "{year} est divisible par 400 : c'est une année bissextile.",
        ),
        list_separator=", ",
        number_separator=" ; ",
        letter_separator="-",
        shortest_word=5,
    ),
    "de": Vocabulary(
        ordinals=("1", "2", "3"),
        more=("länger", "schwerer", "mehr"),
        money="{} €",
        money_scale=(-1, 2),
        items=("Heft", "Stift", "Tasche", "Becher", "Regenschirm", "Lampe", "Buch", "Schal"),
        leap_rules=(
            "{year} geteilt durch 4 lässt den Rest {rest}, also ist es kein Schaltjahr.",
            "{year} ist durch 4, aber nicht durch 100 teilbar, also ist es ein Schaltjahr.",
            "{year} ist durch 100, aber nicht durch 400 teilbar, also ist es kein Schaltjahr.",
            "{year} ist durch 400 teilbar, also ist es ein Schaltjahr.",
        ),
        list_separator=", ",
        number_separator="; ",
        letter_separator="-",
        shortest_word=5,
    ),
}

ENGLISH = {
    "trip_currency": Phrasing(
        (
            "Which currency is used at stop {ordinal} of the trip?",
            "Which currency does the traveler need at stop {ordinal}?",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "Stop {ordinal} is {country}. The currency code there is {code}: {currency}.",
        "{Place}, the currency is the {currency}.",
    ),
    "same_language": Phrasing(
        (
            "Which two of these countries have the same official language?",
            "Name the two countries in the list that share their official language.",
        ),
        "{list}",
        "{country1}: {language1}. {country2}: {language2}. {country3}: {language3}.",
        "{same1} and {same2} ({shared})",
    ),
    "weekday_of_date": Phrasing(
        (
            "Which day of the week is {target}?",
            "Use the date in the input to find the weekday of {target}.",
        ),
        "{known} is a {weekday}.",
        "{last} - {first} = {days} days, and {days} = {weeks} × 7 + {rest}. "
        "Counting {rest} on from {weekday}: {steps}.",
        "{target} is a {answer}.",
    ),
    "sort_numbers": Phrasing(
        (
            "Sort the numbers in the input from smallest to largest.",
            "Sort the numbers in the input from largest to smallest.",
        ),
        "{list}",
        "The smallest number is {n1} and the largest is {n4}. In between: {n2} < {n3}.",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "What is the total price of this purchase?",
            "How much does this purchase cost in total?",
        ),
        "{item1}: {count1} × {price1}\n{item2}: {count2} × {price2}",
        "{item1}: {count1} × {n1} = {cost1}. {item2}: {count2} × {n2} = {cost2}. "
        "Together: {cost1} + {cost2} = {sum}.",
        "The total price is {total}.",
    ),
    "weekday_after": Phrasing(
        (
            "Today is {weekday}. What day of the week will it be in {days} days?",
            "It is {weekday}. Which weekday comes {days} days later?",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}. Counting {rest} on from {weekday}: {steps}.",
        "{days} days after a {weekday} it is {answer}.",
    ),
    "days_between": Phrasing(
        (
            "How many days pass from {start} to {end_dated}?",
            "How many days after {start} is {end_dated}?",
        ),
        "",
        "{month1} has {length} days, so {length} - {day1} = {left} days are left in it. "
        "With {day2} days of {month2}: {left} + {day2} = {answer}.",
        "From {start} to {end_dated} it is {answer} days.",
    ),
    "leap_year": Phrasing(
        (
            "In the Gregorian calendar, how many days are there in the year {year}?",
            "How many days does the year {year} of the Gregorian calendar have?",
        ),
        "",
        "{rule} A leap year has 366 days, any other year 365.",
        "The year {year} has {days} days.",
    ),
    "duration": Phrasing(
        (
            "How many minutes are there in {hours} and {minutes}?",
            "Convert {hours} and {minutes} into minutes.",
        ),
        "",
        "1 hour has 60 minutes, so {h} × 60 = {product}. Then {product} + {m} = {n}.",
        "{hours} and {minutes} make {total}.",
    ),
    "compare_units": Phrasing(
        (
            "Which is {more}: {large} or {small}?",
            "Compare {large} with {small}. Which is {more}?",
        ),
        "",
        "{one} = {thousand}, so {large} = {converted}. {n1} {sign} {n2}.",
        "{winner} is {more} than {loser}.",
    ),
    "count_letters": Phrasing(
        (
            'How many letters do the words "{word1}" and "{word2}" have in total?',
            'Count the letters of "{word1}" and "{word2}" together.',
        ),
        "",
        "{spelled1}: {n1}. {spelled2}: {n2}. {n1} + {n2} = {sum}.",
        '"{word1}" and "{word2}" have {sum} letters in total.',
    ),
}

JAPANESE = {
    "trip_currency": Phrasing(
        (
            "旅行で{ordinal}番目に訪れる国の通貨は何ですか。",
            "{ordinal}番目の国では、どの通貨で支払いますか。",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "{ordinal}番目の国は{country}です。通貨コードは{code}で、{currency}を表します。",
        "{country}の通貨は{currency}です。",
    ),
    "same_language": Phrasing(
        (
            "次の国のうち、公用語が同じ二つの国はどれですか。",
            "公用語が共通する二つの国を選んでください。",
        ),
        "{list}",
        "{country1}は{language1}、{country2}は{language2}、{country3}は{language3}です。",
        "{same1}と{same2}（{shared}）",
    ),
    "weekday_of_date": Phrasing(
        (
            "{target}は何曜日ですか。",
            "入力の日付をもとに、{target}の曜日を答えてください。",
        ),
        "{known}は{weekday}です。",
        "{last} - {first} = {days}日、{days} = {weeks} × 7 + {rest}です。"
        "{weekday}の次から{rest}日数えると、{steps}です。",
        "{target}は{answer}です。",
    ),
    "sort_numbers": Phrasing(
        (
            "次の数を小さい順に並べてください。",
            "次の数を大きい順に並べてください。",
        ),
        "{list}",
        "最小は{n1}、最大は{n4}です。その間は{n2} < {n3}です。",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "この買い物の合計金額はいくらですか。",
            "全部でいくらになりますか。",
        ),
        "{item1}：{price1} × {count1}\n{item2}：{price2} × {count2}",
        "{item1}は{n1} × {count1} = {cost1}円、{item2}は{n2} × {count2} = {cost2}円です。"
        "{cost1} + {cost2} = {sum}円です。",
        "合計は{total}です。",
    ),
    "weekday_after": Phrasing(
        (
            "今日は{weekday}です。{days}日後は何曜日ですか。",
            "{weekday}の{days}日後は何曜日になりますか。",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}です。{weekday}の次から{rest}日数えると、{steps}です。",
        "{weekday}の{days}日後は{answer}です。",
    ),
    "days_between": Phrasing(
        (
            "{end_dated}は、同じ年の{start}の何日後ですか。",
            "{start_dated}から{end}まで、何日たちますか。",
        ),
        "",
        "{month1}は{length}日まであるので、残りは{length} - {day1} = {left}日です。"
        "{month2}の{day2}日を足すと、{left} + {day2} = {answer}日です。",
        "{end_dated}は{start}の{answer}日後です。",
    ),
    "leap_year": Phrasing(
        (
            "グレゴリオ暦の{year}年は何日ありますか。",
            "グレゴリオ暦では、{year}年は何日ですか。",
        ),
        "",
        "{rule}平年は365日、うるう年は366日です。",
        "{year}年は{days}日あります。",
    ),
    "duration": Phrasing(
        (
            "{hours}{minutes}は何分ですか。",
            "{hours}{minutes}を分に直してください。",
        ),
        "",
        "1時間は60分なので、{h} × 60 = {product}分です。{product} + {m} = {n}分です。",
        "{hours}{minutes}は{total}です。",
    ),
    "compare_units": Phrasing(
        (
            "{large}と{small}では、どちらが{more}ですか。",
            "{large}と{small}を比べると、{more}のはどちらですか。",
        ),
        "",
        "{one} = {thousand}なので、{large} = {converted}です。{n1} {sign} {n2}です。",
        "{winner}のほうが{more}です。",
    ),
    "count_letters": Phrasing(
        (
            "「{word1}」と「{word2}」は合わせて何文字ですか。",
            "「{word1}」と「{word2}」の文字数の合計を答えてください。",
        ),
        "",
        "{spelled1}で{n1}文字、{spelled2}で{n2}文字です。{n1} + {n2} = {sum}です。",
        "「{word1}」と「{word2}」は合わせて{sum}文字です。",
    ),
}

CHINESE = {
    "trip_currency": Phrasing(
        (
            "这次旅行的第{ordinal}站使用什么货币？",
            "到了旅行的第{ordinal}站，应该用哪种货币付款？",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "第{ordinal}站是{country}。当地的货币代码是{code}，也就是{currency}。",
        "{country}的货币是{currency}。",
    ),
    "same_language": Phrasing(
        (
            "下列国家中，哪两个国家的官方语言相同？",
            "请找出官方语言相同的两个国家。",
        ),
        "{list}",
        "{country1}：{language1}。{country2}：{language2}。{country3}：{language3}。",
        "{same1}和{same2}（{shared}）",
    ),
    "weekday_of_date": Phrasing(
        (
            "{target}是星期几？",
            "根据已知的日期，推算{target}是星期几。",
        ),
        "{known}是{weekday}。",
        "{last} - {first} = {days}天，{days} = {weeks} × 7 + {rest}。"
        "从{weekday}往后数{rest}天：{steps}。",
        "{target}是{answer}。",
    ),
    "sort_numbers": Phrasing(
        (
            "请把下列各数从小到大排列。",
            "请把下列各数从大到小排列。",
        ),
        "{list}",
        "最小的数是{n1}，最大的数是{n4}。中间两个数：{n2} < {n3}。",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "买这些东西一共要付多少钱？",
            "这次购物的总价是多少？",
        ),
        "{item1}：{price1} × {count1}\n{item2}：{price2} × {count2}",
        "{item1}：{n1} × {count1} = {cost1}元。{item2}：{n2} × {count2} = {cost2}元。"
        "{cost1} + {cost2} = {sum}元。",
        "一共是{total}。",
    ),
    "weekday_after": Phrasing(
        (
            "今天是{weekday}。{days}天后是星期几？",
            "如果今天是{weekday}，那么{days}天后是星期几？",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}，所以从{weekday}往后数{rest}天：{steps}。",
        "{weekday}的{days}天后是{answer}。",
    ),
    "days_between": Phrasing(
        (
            "从{start_dated}到{end}相隔多少天？",
            "{end_dated}是当年{start}之后的第几天？",
        ),
        "",
        "{month1}有{length}天，还剩{length} - {day1} = {left}天。"
        "加上{month2}的{day2}天，{left} + {day2} = {answer}天。",
        "从{start_dated}到{end}相隔{answer}天。",
    ),
    "leap_year": Phrasing(
        (
            "公历{year}年有多少天？",
            "公历{year}年全年有多少天？",
        ),
        "",
        "{rule}平年有365天，闰年有366天。",
        "{year}年有{days}天。",
    ),
    "duration": Phrasing(
        (
            "{hours}{minutes}一共是多少分钟？",
            "请把{hours}{minutes}换算成分钟。",
        ),
        "",
        "1小时等于60分钟，{h} × 60 = {product}分钟。再加上{m}分钟，{product} + {m} = {n}分钟。",
        "{hours}{minutes}等于{total}。",
    ),
    "compare_units": Phrasing(
        (
            "{large}和{small}，哪个更{more}？",
            "比较一下：{large}和{small}哪个更{more}？",
        ),
        "",
        "{one} = {thousand}，所以{large} = {converted}。{n1} {sign} {n2}。",
        "{winner}比{loser}{more}。",
    ),
    "count_letters": Phrasing(
        (
            "“{word1}”和“{word2}”一共有几个字？",
            "请数一数“{word1}”和“{word2}”合起来有多少个字。",
        ),
        "",
        "{spelled1}是{n1}个字，{spelled2}是{n2}个字。{n1} + {n2} = {sum}。",
        "“{word1}”和“{word2}”一共有{sum}个字。",
    ),
}

KOREAN = {
    "trip_currency": Phrasing(
        (
            "여행의 {ordinal} 번째 나라에서 쓰는 통화는 무엇입니까?",
            "{ordinal} 번째 나라에서는 어떤 통화로 지불합니까?",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "{ordinal} 번째 나라: {country}. 이곳의 통화 코드는 {code}, 곧 {currency}입니다.",
        "{country}의 통화는 {currency}입니다.",
    ),
    "same_language": Phrasing(
        (
            "다음 중 공용어가 같은 두 나라는 어디입니까?",
            "목록에서 공용어가 서로 같은 두 나라를 고르세요.",
        ),
        "{list}",
        "{country1}: {language1}. {country2}: {language2}. {country3}: {language3}.",
        "{same1}, {same2}({shared})",
    ),
    "weekday_of_date": Phrasing(
        (
            "{target}은 무슨 요일입니까?",
            "주어진 날짜를 이용해 {target}의 요일을 구하세요.",
        ),
        "{known}은 {weekday}입니다.",
        "{last} - {first} = {days}일이고, {days} = {weeks} × 7 + {rest}입니다. "
        "{weekday} 다음부터 {rest}일을 세면 {steps}입니다.",
        "{target}은 {answer}입니다.",
    ),
    "sort_numbers": Phrasing(
        (
            "다음 수를 작은 것부터 차례대로 나열하세요.",
            "다음 수를 큰 것부터 차례대로 나열하세요.",
        ),
        "{list}",
        "가장 작은 수는 {n1}, 가장 큰 수는 {n4}입니다. 그 사이는 {n2} < {n3}입니다.",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "이 물건들을 모두 사면 얼마입니까?",
            "구입한 물건의 총금액은 얼마입니까?",
        ),
        "{item1}: {price1} × {count1}\n{item2}: {price2} × {count2}",
        "{item1}: {n1} × {count1} = {cost1}원. {item2}: {n2} × {count2} = {cost2}원. "
        "합하면 {cost1} + {cost2} = {sum}원입니다.",
        "총금액은 {total}입니다.",
    ),
    "weekday_after": Phrasing(
        (
            "오늘은 {weekday}입니다. {days}일 뒤는 무슨 요일입니까?",
            "{weekday}에서 {days}일이 지나면 무슨 요일입니까?",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}입니다. {weekday} 다음부터 {rest}일을 세면 {steps}입니다.",
        "{weekday}에서 {days}일 뒤는 {answer}입니다.",
    ),
    "days_between": Phrasing(
        (
            "{end_dated}은 같은 해 {start}에서 며칠 뒤입니까?",
            "{start_dated}부터 {end}까지 며칠이 지납니까?",
        ),
        "",
        "{month1}은 {length}일까지 있으므로 {length} - {day1} = {left}일이 남습니다. "
        "{month2}의 {day2}일을 더하면 {left} + {day2} = {answer}일입니다.",
        "{end_dated}은 {start}에서 {answer}일 뒤입니다.",
    ),
    "leap_year": Phrasing(
        (
            "그레고리력에서 {year}년은 모두 며칠입니까?",
            "그레고리력으로 {year}년은 며칠입니까?",
        ),
        "",
        "{rule} 평년은 365일, 윤년은 366일입니다.",
        "{year}년은 {days}일입니다.",
    ),
    "duration": Phrasing(
        (
            "{hours} {minutes}은 모두 몇 분입니까?",
            "{hours} {minutes}을 분으로 나타내세요.",
        ),
        "",
        "1시간은 60분이므로 {h} × 60 = {product}분입니다. {product} + {m} = {n}분입니다.",
        "{hours} {minutes}은 {total}입니다.",
    ),
    "compare_units": Phrasing(
        (
            "다음 중 더 {more} 것은 무엇입니까? {large}, {small}",
            "두 값 가운데 더 {more} 쪽을 고르세요: {large}, {small}",
        ),
        "",
        "{one} = {thousand}이므로 {large} = {converted}입니다. {n1} {sign} {n2}입니다.",
        "더 {more} 것은 {winner}입니다.",
    ),
    "count_letters": Phrasing(
        (
            "두 낱말 ‘{word1}’, ‘{word2}’의 글자 수는 모두 합해 몇입니까?",
            "‘{word1}’, ‘{word2}’의 글자 수를 더하면 얼마입니까?",
        ),
        "",
        "{spelled1}: {n1}글자. {spelled2}: {n2}글자. {n1} + {n2} = {sum}입니다.",
        "‘{word1}’, ‘{word2}’의 글자 수는 모두 {sum}입니다.",
    ),
}

SPANISH = {
    "trip_currency": Phrasing(
        (
            "¿Qué moneda se usa en la parada {ordinal} del viaje?",
            "¿Con qué moneda se paga en la parada {ordinal}?",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "La parada {ordinal} es {country}. El código de su moneda es {code}: {currency}.",
        "{Place}, la moneda se llama «{currency}».",
    ),
    "same_language": Phrasing(
        (
            "¿Qué dos países de la lista tienen el mismo idioma oficial?",
            "Indica los dos países que comparten idioma oficial.",
        ),
        "{list}",
        "{country1}: {language1}. {country2}: {language2}. {country3}: {language3}.",
        "{same1} y {same2} ({shared})",
    ),
    "weekday_of_date": Phrasing(
        (
            "¿Qué día de la semana es el {target}?",
            "A partir de la fecha dada, averigua qué día de la semana es el {target}.",
        ),
        "El {known} es {weekday}.",
        "{last} - {first} = {days} días, y {days} = {weeks} × 7 + {rest}. "
        "Después del {weekday} contamos {rest}: {steps}.",
        "El {target} es {answer}.",
    ),
    "sort_numbers": Phrasing(
        (
            "Ordena los números siguientes de menor a mayor.",
            "Ordena los números siguientes de mayor a menor.",
        ),
        "{list}",
        "El número menor es {n1} y el mayor es {n4}. Entre ambos: {n2} < {n3}.",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "¿Cuál es el precio total de esta compra?",
            "¿Cuánto cuesta esta compra en total?",
        ),
        "{item1}: {count1} × {price1}\n{item2}: {count2} × {price2}",
        "{item1}: {count1} × {n1} = {cost1}. {item2}: {count2} × {n2} = {cost2}. "
        "En total: {cost1} + {cost2} = {sum}.",
        "El precio total es de {total}.",
    ),
    "weekday_after": Phrasing(
        (
            "Hoy es {weekday}. ¿Qué día de la semana será dentro de {days} días?",
            "Si hoy es {weekday}, ¿qué día de la semana será {days} días después?",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}. Después del {weekday} contamos {rest}: {steps}.",
        "{days} días después de un {weekday} es {answer}.",
    ),
    "days_between": Phrasing(
        (
            "¿Cuántos días pasan del {start} al {end_dated}?",
            "¿Cuántos días hay que contar para ir del {start} al {end_dated}?",
        ),
        "",
        "{Month1} tiene {length} días: quedan {length} - {day1} = {left}. "
        "Más los {day2} días de {month2}: {left} + {day2} = {answer}.",
        "Del {start} al {end_dated} pasan {answer} días.",
    ),
    "leap_year": Phrasing(
        (
            "En el calendario gregoriano, ¿cuántos días tiene el año {year}?",
            "¿Cuántos días tiene el año {year} del calendario gregoriano?",
        ),
        "",
        "{rule} Un año bisiesto tiene 366 días; los demás, 365.",
        "El año {year} tiene {days} días.",
    ),
    "duration": Phrasing(
        (
            "¿Cuántos minutos hay en {hours} y {minutes}?",
            "Convierte en minutos: {hours} y {minutes}.",
        ),
        "",
        "1 hora tiene 60 minutos, así que {h} × 60 = {product}. Luego, {product} + {m} = {n}.",
        "En {hours} y {minutes} hay {total}.",
    ),
    # "o bien", because a bare "o" would become "u" before numbers read as "ocho…".
    "compare_units": Phrasing(
        (
            "¿Qué {more} es mayor: {large} o bien {small}?",
            "Compara {large} con {small}. ¿Qué {more} es mayor?",
        ),
        "",
        "{one} = {thousand}, así que {large} = {converted}. {n1} {sign} {n2}.",
        "La {more} mayor es de {winner}.",
    ),
    "count_letters": Phrasing(
        (
            "¿Cuántas letras tienen en total estas dos palabras: «{word1}», «{word2}»?",
            "Cuenta todas las letras de estas palabras: «{word1}», «{word2}».",
        ),
        "",
        "{spelled1}: {n1}. {spelled2}: {n2}. {n1} + {n2} = {sum}.",
        "Las palabras «{word1}», «{word2}» suman {sum} letras.",
    ),
}

FRENCH = {
    "trip_currency": Phrasing(
        (
            "Quelle monnaie utilise-t-on à l'étape {ordinal} du voyage ?",
            "Avec quelle monnaie paie-t-on à l'étape {ordinal} ?",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "Étape {ordinal} : {country}. Le code de la monnaie est {code} : {currency}.",
        "{Place}, la monnaie s'appelle « {currency} ».",
    ),
    "same_language": Phrasing(
        (
            "Quels sont les deux pays de la liste qui ont la même langue officielle ?",
            "Indiquez les deux pays qui partagent la même langue officielle.",
        ),
        "{list}",
        "{country1} : {language1}. {country2} : {language2}. {country3} : {language3}.",
        "{same1} et {same2} ({shared})",
    ),
    "weekday_of_date": Phrasing(
        (
            "Quel jour de la semaine est le {target} ?",
            "À partir de la date donnée, trouvez le jour de la semaine du {target}.",
        ),
        "Le {known} est un {weekday}.",
        "{last} - {first} = {days} jours, et {days} = {weeks} × 7 + {rest}. "
        "Après {weekday}, on avance de {rest} : {steps}.",
        "Le {target} est un {answer}.",
    ),
    "sort_numbers": Phrasing(
        (
            "Classez les nombres suivants du plus petit au plus grand.",
            "Classez les nombres suivants du plus grand au plus petit.",
        ),
        "{list}",
        "Le plus petit nombre est {n1} et le plus grand est {n4}. Entre les deux : {n2} < {n3}.",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "Quel est le prix total de cet achat ?",
            "Combien coûte cet achat en tout ?",
        ),
        "{item1} : {count1} × {price1}\n{item2} : {count2} × {price2}",
        "{item1} : {count1} × {n1} = {cost1}. {item2} : {count2} × {n2} = {cost2}. "
        "En tout : {cost1} + {cost2} = {sum}.",
        "Le prix total est de {total}.",
    ),
    "weekday_after": Phrasing(
        (
            "Aujourd'hui, c'est {weekday}. Quel jour de la semaine serons-nous dans {days} jours ?",
            "Nous sommes {weekday}. Quel jour de la semaine serons-nous {days} jours plus tard ?",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}. Après {weekday}, on avance de {rest} : {steps}.",
        "{days} jours après un {weekday}, c'est un {answer}.",
    ),
    "days_between": Phrasing(
        (
            "Combien de jours s'écoulent du {start} au {end_dated} ?",
            "Combien de jours séparent le {start} du {end_dated} ?",
        ),
        "",
        "{Month1} compte {length} jours : il en reste {length} - {day1} = {left}. "
        "Avec {day2} jours en {month2} : {left} + {day2} = {answer}.",
        "Du {start} au {end_dated}, il s'écoule {answer} jours.",
    ),
    "leap_year": Phrasing(
        (
            "Dans le calendrier grégorien, combien de jours compte l'année {year} ?",
            "Combien de jours l'année {year} du calendrier grégorien compte-t-elle ?",
        ),
        "",
        "{rule} Une année bissextile compte 366 jours, les autres 365.",
        "L'année {year} compte {days} jours.",
    ),
    "duration": Phrasing(
        (
            "Combien de minutes y a-t-il dans {hours} et {minutes} ?",
            "Convertissez en minutes : {hours} et {minutes}.",
        ),
        "",
        "1 heure compte 60 minutes, donc {h} × 60 = {product}. Ensuite, {product} + {m} = {n}.",
        "{hours} et {minutes} font {total}.",
    ),
    "compare_units": Phrasing(
        (
            "Quelle {more} est la plus grande : {large} ou {small} ?",
            "Comparez {large} et {small}. Quelle {more} est la plus grande ?",
        ),
        "",
        "{one} = {thousand}, donc {large} = {converted}. {n1} {sign} {n2}.",
        "La plus grande {more} est de {winner}.",
    ),
    "count_letters": Phrasing(
        (
            "Combien de lettres les mots « {word1} » et « {word2} » comptent-ils en tout ?",
            "Comptez toutes les lettres des mots « {word1} » et « {word2} ».",
        ),
        "",
        "{spelled1} : {n1}. {spelled2} : {n2}. {n1} + {n2} = {sum}.",
        "Les mots « {word1} » et « {word2} » comptent {sum} lettres en tout.",
    ),
}

GERMAN = {
    "trip_currency": Phrasing(
        (
            "Mit welcher Währung bezahlt man bei Station {ordinal} der Reise?",
            "Welche Währung braucht man bei Station {ordinal}?",
        ),
        "1. {stop1}\n2. {stop2}\n3. {stop3}",
        "Station {ordinal} ist {country}. Der Währungscode dort ist {code}: {currency}.",
        "{Place} heißt die Währung „{currency}“.",
    ),
    "same_language": Phrasing(
        (
            "Welche zwei dieser Länder haben dieselbe Amtssprache?",
            "Nenne die beiden Länder der Liste, die dieselbe Amtssprache haben.",
        ),
        "{list}",
        "{country1}: {language1}. {country2}: {language2}. {country3}: {language3}.",
        "{same1} und {same2} ({shared})",
    ),
    "weekday_of_date": Phrasing(
        (
            "Welcher Wochentag ist der {target}?",
            "Auf welchen Wochentag fällt der {target}?",
        ),
        "Der {known} ist ein {weekday}.",
        "{last} - {first} = {days} Tage, und {days} = {weeks} × 7 + {rest}. "
        "Von {weekday} aus zählt man {rest} weiter: {steps}.",
        "Der {target} ist ein {answer}.",
    ),
    "sort_numbers": Phrasing(
        (
            "Sortiere die folgenden Zahlen von der kleinsten zur größten.",
            "Sortiere die folgenden Zahlen von der größten zur kleinsten.",
        ),
        "{list}",
        "Die kleinste Zahl ist {n1}, die größte ist {n4}. Dazwischen: {n2} < {n3}.",
        "{sorted}",
    ),
    "price_total": Phrasing(
        (
            "Wie hoch ist der Gesamtpreis dieses Einkaufs?",
            "Was kostet dieser Einkauf insgesamt?",
        ),
        "{item1}: {count1} × {price1}\n{item2}: {count2} × {price2}",
        "{item1}: {count1} × {n1} = {cost1}. {item2}: {count2} × {n2} = {cost2}. "
        "Zusammen: {cost1} + {cost2} = {sum}.",
        "Der Gesamtpreis beträgt {total}.",
    ),
    "weekday_after": Phrasing(
        (
            "Heute ist {weekday}. Welcher Wochentag ist in {days} Tagen?",
            "Es ist {weekday}. Welcher Wochentag ist {days} Tage später?",
        ),
        "",
        "{days} = {weeks} × 7 + {rest}. Von {weekday} aus zählt man {rest} weiter: {steps}.",
        "{days} Tage nach einem {weekday} ist {answer}.",
    ),
    "days_between": Phrasing(
        (
            "Wie viele Tage vergehen vom {start} bis zum {end_dated}?",
            "Wie viele Tage sind es vom {start} bis zum {end_dated}?",
        ),
        "",
        "Der {month1} hat {length} Tage, also bleiben {length} - {day1} = {left}. "
        "Mit {day2} Tagen im {month2}: {left} + {day2} = {answer}.",
        "Vom {start} bis zum {end_dated} vergehen {answer} Tage.",
    ),
    "leap_year": Phrasing(
        (
            "Im gregorianischen Kalender: Wie viele Tage hat das Jahr {year}?",
            "Wie viele Tage hat das Jahr {year} im gregorianischen Kalender?",
        ),
        "",
        "{rule} Ein Schaltjahr hat 366 Tage, jedes andere Jahr 365.",
        "Das Jahr {year} hat {days} Tage.",
    ),
    "duration": Phrasing(
        (
            "Wie viele Minuten sind {hours} und {minutes}?",
            "Rechne in Minuten um: {hours} und {minutes}.",
        ),
        "",
        "1 Stunde hat 60 Minuten, also {h} × 60 = {product}. Dann {product} + {m} = {n}.",
        "{hours} und {minutes} sind {total}.",
    ),
    "compare_units": Phrasing(
        (
            "Was ist {more}: {large} oder {small}?",
            "Vergleiche: {large} und {small}. Was ist {more}?",
        ),
        "",
        "{one} = {thousand}, also {large} = {converted}. {n1} {sign} {n2}.",
        "{winner} sind {more} als {loser}.",
    ),
    "count_letters": Phrasing(
        (
            "Wie viele Buchstaben haben die Wörter „{word1}“ und „{word2}“ zusammen?",
            "Zähle die Buchstaben der Wörter „{word1}“ und „{word2}“ zusammen.",
        ),
        "",
        "{spelled1}: {n1}. {spelled2}: {n2}. {n1} + {n2} = {sum}.",
        "„{word1}“ und „{word2}“ haben zusammen {sum} Buchstaben.",
    ),
}

PHRASES = {
    "en": ENGLISH,
    "ja": JAPANESE,
    "zh": CHINESE,
    "ko": KOREAN,
    "es": SPANISH,
    "fr": FRENCH,
    "de": GERMAN,
}
