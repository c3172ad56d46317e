"""How each task is put into words, language by language.

Inserted names never have to agree with the words around them: they stand after a colon, in
quotation marks, or where the language does not inflect.  Rows use the instructions of a task in
turn.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """Words and signs of a language."""

    stop: str  # after a sentence, and before the next
    between: str  # a name and its value
    comma: str
    money: str
    items: tuple[str, ...]
    colours: tuple[str, ...]
    fields: tuple[str, ...]  # item, day, price, number, colour
    small_units: tuple[str, ...]  # days, months, seconds
    largest: str
    yes: str
    no: str
    words: str
    instructions: dict[str, tuple[str, ...]]

    def colon(self, name: object, value: object) -> str:
        return f"{name}{self.between}{value}"

    def list_of(self, items: Iterable[object]) -> str:
        return self.comma.join(map(str, items))

    def sentences(self, steps: Iterable[str]) -> str:
        return "".join(f"{step}{self.stop}" for step in steps).strip()


ONES = {
    "en": "one two three four five six seven eight nine",
    "es": "uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "un deux trois quatre cinq six sept huit neuf",
    "de": "ein zwei drei vier fünf sechs sieben acht neun",
    "ja": "一 二 三 四 五 六 七 八 九",
    "zh": "一 二 三 四 五 六 七 八 九",
    "ko": "일 이 삼 사 오 육 칠 팔 구",
}
TENS = {
    "en": "twenty thirty forty fifty sixty",
    "es": "veinti treinta cuarenta cincuenta sesenta",
    "fr": "vingt trente quarante cinquante soixante",
    "de": "zwanzig dreißig vierzig fünfzig sechzig",
}
ACCENTED = {"veintidos": "veintidós", "veintitres": "veintitrés", "veintiseis": "veintiséis"}


def number_in_words(number: int, language: str) -> str:
    """The words of a number from 21 to 69 that is no multiple of ten."""
    ten, one = divmod(number, 10)
    ones = ONES[language].split()
    unit = ones[one - 1]
    if language in ("ja", "zh", "ko"):
        return ones[ten - 1] + ("십" if language == "ko" else "十") + unit
    tens = TENS[language].split()[ten - 2]
    if language == "de":
        return f"{unit}und{tens}"
    if language == "fr":
        return f"{tens} et un" if one == 1 else f"{tens}-{unit}"
    if language == "es":
        return ACCENTED.get(tens + unit, tens + unit) if ten == 2 else f"{tens} y {unit}"
    return f"{tens}-{unit}"


ENGLISH = Vocabulary(
    stop=". ",
    between=": ",
    comma=", ",
    money="${}",
    items=("Notebook", "Pen", "Bag", "Cup", "Umbrella", "Lamp", "Book", "Scarf"),
    colours=("red", "blue", "green", "yellow", "black", "white"),
    fields=("Item", "Day", "Price", "Number", "Colour"),
    small_units=("days", "months", "seconds"),
    largest="Largest",
    yes="Yes",
    no="No",
    words=(
        "apple bread cloud door egg fish garden house island jacket key lemon moon night orange "
        "paper river star table window"
    ),
    instructions={
        "chained_sum": (
            "What is {sum}?",
            "Calculate step by step: {sum}",
            "A counter shows {start}. It changes by {changes}. What does it show then?",
        ),
        "count_letters": (
            "How many times does {letter} occur in the list?",
            "Count how often {letter} stands in the list.",
        ),
        "date_after": (
            "Today is {date}. What is the date in {days} days?",
            "Which date is {days} days after {date}?",
        ),
        "order_teams": (
            "Order the teams by points, highest first. With equal points, go by the alphabet.",
            "Rank the teams: more points come first, then the alphabet decides.",
        ),
        "follow_route": (
            "Start at {start} and follow {count} arrows. Where do you arrive?",
            "Which stop do you reach from {start} after {count} arrows?",
        ),
        "shop": (
            "What is the total price of this purchase?",
            "How much do these things cost together?",
            "Add up the bill.",
        ),
        "convert_units": (
            "How many {unit} are {large} and {small}?",
            "Convert into {unit}: {large} and {small}.",
        ),
        "initials": (
            "List the first letters of these words.",
            "What is the first letter of each word?",
        ),
        "read_form": (
            'What does the form say under "{field}"?',
            'Read the value of "{field}" from the form.',
        ),
        "largest": (
            "Which of these numbers is the largest?",
            "Pick the largest number.",
            "Find the greatest number in the list.",
        ),
        "currency": (
            'Which currency code does the list give for "{country}"?',
            'Find the currency code for "{country}" in the list.',
        ),
        "number_words": (
            "Write in digits: {words}",
            "Turn these number words into digits: {words}",
        ),
        "apply_rule": (
            "The shop is closed on these days: {list}. Is it closed on {value}?",
            "These colours win: {list}. Does {value} win?",
            "These groups travel free: {list}. Does group {value} travel free?",
        ),
    },
)

JAPANESE = Vocabulary(
    stop="。",
    between="：",
    comma="、",
    money="{}ユーロ",
    items=("ノート", "ペン", "かばん", "カップ", "傘", "ランプ", "本", "マフラー"),
    colours=("赤", "青", "緑", "黄", "黒", "白"),
    fields=("品名", "曜日", "値段", "番号", "色"),
    small_units=("日", "か月", "秒"),
    largest="最大",
    yes="はい",
    no="いいえ",
    words=(
        "山道 海辺 森林 空気 花火 雨水 星空 月夜 朝日 夕方 "
        "石橋 木材 車輪 電話 学校 天気 時計 手紙 音楽 新聞"
    ),
    instructions={
        "chained_sum": (
            "{sum}はいくつですか。",
            "順に計算してください。{sum}",
            "カウンターは{start}です。{changes}と変わると、いくつになりますか。",
        ),
        "count_letters": (
            "リストに{letter}は何回出てきますか。",
            "リストに{letter}がいくつあるか数えてください。",
        ),
        "date_after": (
            "今日は{date}です。{days}日後は何月何日ですか。",
            "{date}の{days}日後の日付を答えてください。",
        ),
        "order_teams": (
            "チームを点の多い順に並べてください。同点ならアルファベット順です。",
            "点の多いチームから順に書いてください。同点はアルファベット順にします。",
        ),
        "follow_route": (
            "{start}から矢印を{count}本たどると、どこに着きますか。",
            "{start}から始めて、矢印を{count}回進んだ先はどこですか。",
        ),
        "shop": (
            "この買い物の合計金額はいくらですか。",
            "全部でいくらになりますか。",
            "合計を計算してください。",
        ),
        "convert_units": (
            "{large}と{small}は、合わせて何{unit}ですか。",
            "{large}と{small}が何{unit}になるか、計算してください。",
        ),
        "initials": (
            "それぞれの言葉の最初の文字を並べてください。",
            "各単語の一文字目は何ですか。",
        ),
        "read_form": (
            "用紙の「{field}」には何と書いてありますか。",
            "用紙から「{field}」の内容を読み取ってください。",
        ),
        "largest": (
            "この中でいちばん大きい数はどれですか。",
            "最も大きい数を選んでください。",
            "リストの中で最大の数を答えてください。",
        ),
        "currency": (
            "リストにある「{country}」の通貨コードは何ですか。",
            "「{country}」の通貨コードをリストから選んでください。",
        ),
        "number_words": (
            "次の数を算用数字で書いてください。{words}",
            "{words}を算用数字で表すとどうなりますか。",
        ),
        "apply_rule": (
            "定休日は{list}です。{value}は休みですか。",
            "当たりの色は{list}です。{value}は当たりですか。",
            "無料の組は{list}です。{value}組は無料ですか。",
        ),
    },
)

CHINESE = Vocabulary(
    stop="。",
    between="：",
    comma="、",
    money="{}元",
    items=("笔记本", "钢笔", "书包", "杯子", "雨伞", "台灯", "字典", "围巾"),
    colours=("红色", "蓝色", "绿色", "黄色", "黑色", "白色"),
    fields=("物品", "星期", "价格", "编号", "颜色"),
    small_units=("天", "个月", "秒"),
    largest="最大",
    yes="是",
    no="否",
    words=(
        "山水 大海 森林 天空 花园 雨伞 星星 月亮 太阳 早上 "
        "石头 木头 车站 电话 学校 风车 时间 手机 音乐 新闻"
    ),
    instructions={
        "chained_sum": (
            "{sum}等于多少？",
            "请一步一步计算：{sum}",
            "计数器显示{start}，依次变化{changes}。最后显示多少？",
        ),
        "count_letters": (
            "列表中{letter}出现了几次？",
            "请数一数列表中有几个{letter}。",
        ),
        "date_after": (
            "今天是{date}。{days}天后是几月几日？",
            "{date}再过{days}天是几月几日？",
        ),
        "order_teams": (
            "请按分数从高到低排列各队，分数相同时按字母顺序。",
            "给各队排名：分数高的在前，同分的按字母顺序。",
        ),
        "follow_route": (
            "从{start}出发，沿箭头走{count}步，到达哪里？",
            "由{start}开始走{count}个箭头，会到哪一站？",
        ),
        "shop": (
            "买这些东西一共要付多少钱？",
            "这次购物的总价是多少？",
            "请算出账单的总额。",
        ),
        "convert_units": (
            "{large}加{small}一共是多少{unit}？",
            "请算一算，{large}和{small}合起来是多少{unit}。",
        ),
        "initials": (
            "请列出每个词的第一个字。",
            "各词的首字是什么？",
        ),
        "read_form": (
            "表格中“{field}”一栏写的是什么？",
            "请从表格中读出“{field}”的内容。",
        ),
        "largest": (
            "下列数中哪一个最大？",
            "请选出最大的数。",
            "请找出列表中最大的数。",
        ),
        "currency": (
            "列表中“{country}”的货币代码是什么？",
            "请在列表中找出“{country}”的货币代码。",
        ),
        "number_words": (
            "请用阿拉伯数字写出：{words}",
            "把下列数改写成阿拉伯数字：{words}",
        ),
        "apply_rule": (
            "商店在{list}休息。{value}休息吗？",
            "中奖的颜色是{list}。{value}中奖吗？",
            "免费的小组是{list}。{value}组免费吗？",
        ),
    },
)

KOREAN = Vocabulary(
    stop=". ",
    between=": ",
    comma=", ",
    money="{}유로",
    items=("공책", "펜", "가방", "컵", "우산", "전등", "책", "목도리"),
    colours=("빨강", "파랑", "초록", "노랑", "검정", "하양"),
    fields=("물건", "요일", "가격", "번호", "색"),
    small_units=("일", "개월", "초"),
    largest="최대",
    yes="예",
    no="아니요",
    words=(
        "나무 바다 하늘 구름 사과 우산 시계 자동차 학교 고기 "
        "노래 다리 라디오 마을 비누 소리 아침 조개 차표 카드"
    ),
    instructions={
        "chained_sum": (
            "{sum}의 값은 얼마입니까?",
            "차례대로 계산하세요: {sum}",
            "숫자판은 {start}입니다. {changes}만큼 바뀌면 얼마가 됩니까?",
        ),
        "count_letters": (
            "목록에 {letter}는 몇 번 나옵니까?",
            "목록에서 {letter}의 개수를 세어 보세요.",
        ),
        "date_after": (
            "오늘은 {date}입니다. {days}일 후는 몇 월 며칠입니까?",
            "{date}에서 {days}일이 지나면 몇 월 며칠입니까?",
        ),
        "order_teams": (
            "팀을 점수가 높은 순서로 쓰세요. 점수가 같으면 알파벳 순서입니다.",
            "점수가 많은 팀부터 쓰고, 같으면 알파벳 순서로 쓰세요.",
        ),
        "follow_route": (
            "{start}에서 화살표를 {count}번 따라가면 어디입니까?",
            "{start}에서 출발해 화살표 {count}개를 지나면 어디에 닿습니까?",
        ),
        "shop": (
            "구입한 물건의 총금액은 얼마입니까?",
            "모두 합하면 얼마입니까?",
            "계산서를 합산하세요.",
        ),
        "convert_units": (
            "다음을 {unit} 단위로 나타내세요: {large} {small}",
            "{large} {small}, 모두 {unit} 단위로 얼마입니까?",
        ),
        "initials": (
            "각 낱말의 첫 글자를 차례로 쓰세요.",
            "낱말마다 첫 글자는 무엇입니까?",
        ),
        "read_form": (
            '서식의 "{field}" 항목에는 무엇이 적혀 있습니까?',
            '서식에서 "{field}" 항목의 값을 읽으세요.',
        ),
        "largest": (
            "이 중에서 가장 큰 수는 무엇입니까?",
            "가장 큰 수를 고르세요.",
            "목록에서 제일 큰 수를 찾으세요.",
        ),
        "currency": (
            '목록에서 "{country}"의 통화 코드는 무엇입니까?',
            '"{country}"의 통화 코드를 목록에서 찾으세요.',
        ),
        "number_words": (
            "아라비아 숫자로 쓰세요: {words}",
            "다음 수를 숫자로 바꾸어 쓰세요: {words}",
        ),
        "apply_rule": (
            "가게는 다음 요일에 쉽니다: {list}. {value}에 쉽니까?",
            "당첨 색은 다음과 같습니다: {list}. {value}도 당첨입니까?",
            "무료인 조는 다음과 같습니다: {list}. {value}조는 무료입니까?",
        ),
    },
)

SPANISH = Vocabulary(
    stop=". ",
    between=": ",
    comma=", ",
    money="{} €",
    items=("Cuaderno", "Bolígrafo", "Bolso", "Taza", "Paraguas", "Lámpara", "Libro", "Bufanda"),
    colours=("rojo", "azul", "verde", "amarillo", "negro", "blanco"),
    fields=("Artículo", "Día", "Precio", "Número", "Color"),
    small_units=("días", "meses", "segundos"),
    largest="Mayor",
    yes="Sí",
    no="No",
    words=(
        "agua barco casa dedo estrella flor gato hoja isla jardín "
        "luna mesa noche ojo perro queso río sol tren vino"
    ),
    instructions={
        "chained_sum": (
            "¿Cuánto es {sum}?",
            "Calcula paso a paso: {sum}",
            "Un contador marca {start}. Cambia en {changes}. ¿Cuánto marca al final?",
        ),
        "count_letters": (
            "¿Cuántas veces aparece {letter} en la lista?",
            "Cuenta cuántas {letter} hay en la lista.",
        ),
        "date_after": (
            "Hoy es {date}. ¿Qué fecha será dentro de {days} días?",
            "¿Qué fecha es {days} días después del {date}?",
        ),
        "order_teams": (
            "Ordena los equipos por puntos, de más a menos. Si empatan, por orden alfabético.",
            "Clasifica los equipos: primero los puntos y, en caso de empate, el alfabeto.",
        ),
        "follow_route": (
            "Sal de {start} y sigue {count} flechas. ¿Adónde llegas?",
            "¿A qué parada se llega desde {start} después de {count} flechas?",
        ),
        "shop": (
            "¿Cuál es el precio total de esta compra?",
            "¿Cuánto cuestan estas cosas en total?",
            "Suma la cuenta.",
        ),
        "convert_units": (
            "¿Cuántos {unit} son {large} y {small}?",
            "Convierte en {unit}: {large} y {small}.",
        ),
        "initials": (
            "Escribe las primeras letras de estas palabras.",
            "¿Cuál es la primera letra de cada palabra?",
        ),
        "read_form": (
            "¿Qué dice el formulario en «{field}»?",
            "Lee el valor de «{field}» en el formulario.",
        ),
        "largest": (
            "¿Cuál de estos números es el mayor?",
            "Elige el número más grande.",
            "Busca el número mayor de la lista.",
        ),
        "currency": (
            "¿Qué código de moneda da la lista para «{country}»?",
            "Busca en la lista el código de moneda de «{country}».",
        ),
        "number_words": (
            "Escribe en cifras: {words}",
            "Pasa estos números a cifras: {words}",
        ),
        "apply_rule": (
            "La tienda cierra estos días: {list}. ¿Cierra el {value}?",
            "Ganan estos colores: {list}. ¿Gana el {value}?",
            "Estos grupos viajan gratis: {list}. ¿Viaja gratis el grupo {value}?",
        ),
    },
)

FRENCH = Vocabulary(
    stop=". ",
    between=" : ",
    comma=", ",
    money="{} €",
    items=("Cahier", "Stylo", "Sac", "Tasse", "Parapluie", "Lampe", "Livre", "Écharpe"),
    colours=("rouge", "bleu", "vert", "jaune", "noir", "blanc"),
    fields=("Article", "Jour", "Prix", "Numéro", "Couleur"),
    small_units=("jours", "mois", "secondes"),
    largest="Le plus grand",
    yes="Oui",
    no="Non",
    words=(
        "arbre bateau chien doigt eau fleur gare herbe image jardin "
        "livre maison nuit orange pain route soleil table vent wagon"
    ),
    instructions={
        "chained_sum": (
            "Combien font {sum} ?",
            "Calculez pas à pas : {sum}",
            "Un compteur affiche {start}. Il change de {changes}. Que montre-t-il à la fin ?",
        ),
        "count_letters": (
            "Combien de fois {letter} figure-t-il dans la liste ?",
            "Comptez combien de fois {letter} apparaît dans la liste.",
        ),
        "date_after": (
            "Nous sommes le {date}. Quelle sera la date dans {days} jours ?",
            "Quelle date vient {days} jours après le {date} ?",
        ),
        "order_teams": (
            "Classez les équipes par points, du plus au moins. À égalité, suivez l'alphabet.",
            "Rangez les équipes : plus de points d'abord, puis par ordre alphabétique.",
        ),
        "follow_route": (
            "Partez de {start} et suivez {count} flèches. Où arrivez-vous ?",
            "Quel arrêt atteint-on depuis {start} après {count} flèches ?",
        ),
        "shop": (
            "Quel est le prix total de cet achat ?",
            "Combien coûtent ces choses ensemble ?",
            "Faites le total de la facture.",
        ),
        "convert_units": (
            "Combien de {unit} font {large} et {small} ?",
            "Convertissez en {unit} : {large} et {small}.",
        ),
        "initials": (
            "Donnez les premières lettres de ces mots.",
            "Quelle est la première lettre de chaque mot ?",
        ),
        "read_form": (
            "Que dit le formulaire sous « {field} » ?",
            "Lisez la valeur de « {field} » dans le formulaire.",
        ),
        "largest": (
            "Lequel de ces nombres est le plus grand ?",
            "Choisissez le plus grand nombre.",
            "Trouvez le nombre le plus grand de la liste.",
        ),
        "currency": (
            "Quel code de monnaie la liste donne-t-elle pour « {country} » ?",
            "Trouvez dans la liste le code de monnaie pour « {country} ».",
        ),
        "number_words": (
            "Écrivez en chiffres : {words}",
            "Mettez ces nombres en chiffres : {words}",
        ),
        "apply_rule": (
            "Le magasin ferme ces jours : {list}. Ferme-t-il le {value} ?",
            "Ces couleurs gagnent : {list}. Est-ce que {value} gagne ?",
            "Ces groupes voyagent gratuitement : {list}. "
            "Le groupe {value} voyage-t-il gratuitement ?",
        ),
    },
)

GERMAN = Vocabulary(
    stop=". ",
    between=": ",
    comma=", ",
    money="{} €",
    items=("Heft", "Stift", "Tasche", "Becher", "Regenschirm", "Lampe", "Buch", "Schal"),
    colours=("rot", "blau", "grün", "gelb", "schwarz", "weiß"),
    fields=("Artikel", "Tag", "Preis", "Nummer", "Farbe"),
    small_units=("Tage", "Monate", "Sekunden"),
    largest="Größte Zahl",
    yes="Ja",
    no="Nein",
    words=(
        "Apfel Brot Dach Erde Fisch Garten Haus Insel Jacke Katze "
        "Licht Mond Nacht Ofen Papier Regen Stern Tisch Vogel Wolke"
    ),
    instructions={
        "chained_sum": (
            "Wie viel ist {sum}?",
            "Rechne Schritt für Schritt: {sum}",
            "Ein Zähler steht auf {start}. Er ändert sich um {changes}. Worauf steht er dann?",
        ),
        "count_letters": (
            "Wie oft kommt {letter} in der Liste vor?",
            "Zähle, wie oft {letter} in der Liste steht.",
        ),
        "date_after": (
            "Heute ist der {date}. Welches Datum ist in {days} Tagen?",
            "Welches Datum ist {days} Tage nach dem {date}?",
        ),
        "order_teams": (
            "Ordne die Teams nach Punkten, die meisten zuerst. Bei Gleichstand gilt das Alphabet.",
            "Stelle die Rangfolge auf: erst nach Punkten, dann nach dem Alphabet.",
        ),
        "follow_route": (
            "Beginne bei {start} und folge {count} Pfeilen. Wo kommst du an?",
            "Welche Station erreicht man von {start} nach {count} Pfeilen?",
        ),
        "shop": (
            "Was kostet dieser Einkauf insgesamt?",
            "Wie viel kosten diese Sachen zusammen?",
            "Zähle die Rechnung zusammen.",
        ),
        "convert_units": (
            "Wie viele {unit} sind {large} und {small}?",
            "Rechne in {unit} um: {large} und {small}.",
        ),
        "initials": (
            "Nenne die Anfangsbuchstaben dieser Wörter.",
            "Was ist der erste Buchstabe jedes Wortes?",
        ),
        "read_form": (
            "Was steht im Formular unter „{field}“?",
            "Lies den Wert von „{field}“ aus dem Formular ab.",
        ),
        "largest": (
            "Welche dieser Zahlen ist die größte?",
            "Wähle die größte Zahl.",
            "Finde die größte Zahl der Liste.",
        ),
        "currency": (
            "Welchen Währungscode gibt die Liste für „{country}“ an?",
            "Suche in der Liste den Währungscode für „{country}“.",
        ),
        "number_words": (
            "Schreibe in Ziffern: {words}",
            "Übertrage diese Zahlwörter in Ziffern: {words}",
        ),
        "apply_rule": (
            "Der Laden ist an diesen Tagen zu: {list}. Ist er am {value} zu?",
            "Diese Farben gewinnen: {list}. Gewinnt {value}?",
            "Diese Gruppen fahren frei: {list}. Fährt Gruppe {value} frei?",
        ),
    },
)

VOCABULARY = {
    "en": ENGLISH,
    "ja": JAPANESE,
    "zh": CHINESE,
    "ko": KOREAN,
    "es": SPANISH,
    "fr": FRENCH,
    "de": GERMAN,
}
