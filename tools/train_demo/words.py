"""Word lists that the synthetic conversations draw from."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _split(
    """Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Nina Oscar Paul Rosa Sam
    Tina Victor Alice Bob Carol Daniel Eva Frank Greta Hugo Ida Jonas Lena Max Nora Otto
    Peter Ruth Simon Tom Ursula Walter Zoe Adam Bella Chris Dora Eric Fiona George Hanna Ivan
    Julia Karl Laura Mike Olga Priya Ravi Sara Theo Yuki Omar Amir Mei Diego Lucia Aisha Noah
    Liam Mia Ella Lily John Mary James Linda Robert Susan"""
)
PET_NAMES = _split(
    """Milo Rex Luna Bella Max Charlie Coco Rocky Daisy Oscar Ruby Toby Lola Felix Simba Nala Ziggy
    Pepper Ginger Shadow Smokey Tiger Bruno Buddy Duke Jasper Poppy Rosie Teddy Willow
    Biscuit Cookie Mocha Olive Pixie Snowy Sparky Storm Sunny Whiskers Apollo Bandit Cleo
    Dexter Echo"""
)
PETS = _split("cat dog horse rabbit parrot hamster turtle goat pony duck snake mouse goldfish hen")
ANIMALS = _split(
    "fox bear wolf lion tiger frog mouse whale rabbit panda turtle hedgehog squirrel deer cat dog"
)
COLOURS = _split("red blue green yellow black white orange purple brown pink grey silver gold")
CITIES = (
    *_split(
        """Paris London Berlin Rome Madrid Tokyo Lisbon Vienna Oslo Dublin Prague Athens Cairo Delhi
    Lima Boston Chicago Denver Seattle Austin Miami Toronto Sydney Mumbai Seoul Beijing
    Moscow Warsaw Budapest Helsinki Stockholm Copenhagen Amsterdam Brussels Zurich Geneva
    Milan Naples Venice Munich Hamburg Cologne Lyon Nice Porto Seville Valencia Istanbul
    Nairobi Lagos Casablanca Dubai Bangkok Hanoi Manila Jakarta Singapore Osaka Kyoto
    Montreal Vancouver Havana Bogota Santiago Quito Melbourne Auckland Honolulu Houston
    Dallas Phoenix Portland Tunis Accra Riga Tallinn"""
    ),
    "New York",
    "San Francisco",
    "Los Angeles",
    "Buenos Aires",
    "Cape Town",
    "Hong Kong",
)
OBJECTS = _split(
    """key book phone bag hat cup ball ring coin letter map camera watch bottle umbrella knife spoon
    ticket wallet box lamp shoe scarf glove guitar violin hammer ladder basket candle mirror
    pencil notebook laptop tablet charger helmet blanket pillow towel"""
)
PLACES = _split(
    """kitchen garden garage bedroom bathroom office attic cellar hall library barn car boat tent
    drawer cupboard school park tower cabin"""
)
ROOMS = (
    *_split("kitchen bedroom bathroom office garage hall garden attic cellar"),
    "living room",
    "dining room",
)
FOODS = _split(
    """pizza pasta rice soup bread cheese apples bananas grapes honey chocolate salad fish eggs tea
    coffee milk cake cookies pancakes beans carrots potatoes tomatoes olives mushrooms nuts
    butter sugar salt pepper lemons oranges onions garlic yogurt flour"""
)
JOBS = _split(
    """baker doctor teacher pilot farmer nurse painter singer writer lawyer chef driver dentist
    gardener plumber tailor sailor judge actor dancer engineer builder butcher"""
)
DEVICES = (
    *_split("lamp heater fan television radio oven kettle printer speaker alarm dishwasher vacuum"),
    "coffee machine",
    "washing machine",
    "air conditioner",
)
GENRES = _split("jazz rock pop blues folk classical reggae techno soul country disco opera metal")
LANGUAGES = _split(
    """French German Spanish Italian Japanese Chinese Korean Russian Arabic Hindi Portuguese Dutch
    Polish Swedish Greek Turkish"""
)
CURRENCIES = _split("USD EUR GBP JPY CHF INR CNY SEK NOK CAD AUD BRL")
SYMBOLS = _split("AAPL MSFT GOOG AMZN NVDA TSLA META IBM INTC AMD ORCL SAP NFLX ADBE CSCO QCOM")
WORDS = _split(
    """river moon stone cloud tree house bird road light night winter summer spring autumn water
    fire wind snow rain storm forest mountain valley ocean island bridge castle village
    market window door table chair paper music dance dream story friend family morning
    evening garden flower grass leaf seed root apple pear plum cherry berry corn wheat silver
    copper iron glass wood sand clay wool silk cotton leather button needle thread rope wheel
    engine train ship plane truck bicycle wagon horse sheep cow pig goose swan crow hawk
    robin spider beetle ant bee butterfly snail worm shell coral wave tide shore harbour
    anchor sail captain king queen prince knight wizard dragon giant shadow mirror candle
    lantern torch star planet comet sun sky rainbow thunder fog ice frost heat quick slow
    bright dark happy calm brave quiet loud small large tall short young old new warm cold
    sweet sour soft hard heavy empty full open round flat deep wide narrow clean fresh simple
    gentle"""
)
CONDITIONS = (*_split("sunny cloudy rainy windy foggy snowy stormy clear"), "partly cloudy")
WEEKDAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _split(
    "January February March April May June July August September October November December"
)
TASKS = (
    "call {person}",
    "buy {food}",
    "water the plants",
    "feed the {pet}",
    "pay the rent",
    "write to {person}",
    "clean the {room}",
    "book a flight to {city}",
    "meet {person}",
    "take a break",
)
VERBS = _split(
    """find open close order delete create update check start stop print share save rename move copy
    show hide lock paint repair clean count test buy sell rent return"""
)
NOUNS = _split(
    """book door pizza file folder ticket window report order account invoice photo table task
    project song list page message parcel room car user product event note server"""
)
