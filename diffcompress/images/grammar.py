"""Prompts without a data set: a small grammar of what people ask for, in everyday words.

Prompt i follows from (seed, i) alone. Photographs come first, then what is drawn, painted or rendered. Things have
colours, materials, ages and numbers; people have work, clothes and something to do; two things stand in a relation.
"""

from __future__ import annotations

import re

import torch

from diffcompress.noise import generator, streams

# Alternatives, separated by semicolons, each as likely as the others; {name} stands for one of the rule of that name,
# {name}s for its plural. An empty one says nothing.
RULES = {
    "prompt": """
{photo} {scene} {light}; {photo} {scene} {light}; {photo} {scene} {place} {light}; {photo} {scene} {place}; {art}
{scene}; {art} {scene} {place}; {art} {scene} {place} {light}; {scene} {place} {light}; {scene} {place}; {photo}
{landscape} {light}; {art} {landscape} {light}; {landscape} {light}; {photo} {food} {table}; {portrait}; {scene},
{mood}, {quality}; {art} {scene} {place}, {palette}; {written}; {photo} {scene} {place}, {mood}""",
    "photo": """
a photo of; a photo of; a photo of; a photograph of; a close-up photo of; a wide shot of; a black and white photo of;
a macro photo of; a film still of; an aerial photo of; a candid photo of; a vintage photo of; a blurry phone photo of;
a studio photo of; a long exposure of; a polaroid of; a documentary photo of; a product photo of""",
    "art": """
an oil painting of; a watercolour of; a pencil drawing of; a cartoon of; a digital painting of; a 3d render of; a
pixel art picture of; a minimalist illustration of; an old postcard of; a children's book illustration of; an ink
drawing of; a charcoal sketch of; a woodcut of; a mosaic of; a stained glass window showing; a comic panel of; an
anime drawing of; an engraving of; a pastel drawing of; a paper cut-out of; a clay model of; a poster of; a fresco of;
an embroidery of; a low poly render of; a blueprint of; a logo with; concept art of; a tapestry of; a marble sculpture
of; a linocut of; a sticker of; graffiti of; an isometric drawing of; an impressionist painting of; a surrealist
painting of; a cubist painting of; an art deco poster of; a japanese woodblock print of""",
    "scene": """
{animal}; {animal}; {animal} {doing}; {animal} {doing}; {person}; {person} {working}; {person} {working}; {thing};
{thing}; {thing} {beside} {thing}; {animal} {beside} {thing}; {person} {with} {thing}; {person} {with} {animal};
{vehicle}; {vehicle} {beside} {building}; {building}; {plant}; {several}; {fantastic}; {fantastic} {doing}; {room}""",
    "animal": """
a {coat} {beast}; a {beast}; a {age} {beast}; a {coat} {beast}; two {beast}s; a {beast} wearing {clothing}""",
    "beast": """
cat; dog; fox; kitten; puppy; horse; owl; parrot; sea turtle; butterfly; bee; elephant; lion; bear; goldfish; tiger;
giraffe; zebra; rabbit; squirrel; hedgehog; deer; cow; goat; pig; rooster; duck; swan; eagle; penguin; dolphin; whale;
shark; octopus; crab; snail; frog; lizard; snake; crocodile; monkey; gorilla; koala; panda; kangaroo; camel; donkey;
raccoon; otter; beaver; seal; polar bear; flamingo; peacock; hummingbird; crow; robin; bat; dragonfly; ladybird;
spider; jellyfish; seahorse; hamster; guinea pig; badger; leopard; rhino; hippo; sloth; chameleon; turkey; pelican""",
    "coat": "black; white; grey; brown; spotted; striped; golden; ginger; wet; fluffy; albino; muddy",
    "age": "young; very old; baby; tiny; huge; sleepy; proud; curious",
    "doing": """
sleeping; running; jumping; looking at the camera; in the rain; hiding behind {thing}; drinking water; eating; flying;
swimming; climbing; standing in snow; chasing a ball; sitting on {thing}; seen from above; seen from behind; yawning;
reflected in a puddle; peeking out of {thing}; next to {thing}; playing; fighting; walking away; in a row""",
    "person": """
a {kind}; a {kind}; a {years} {kind}; a {kind} in {clothing}; a {kind} in {clothing}; a {kind} with {hair}; a group of
{kind}s; two {kind}s""",
    "kind": """
woman; man; girl; boy; child; farmer; nurse; cook; musician; dancer; astronaut; cyclist; football player; firefighter;
teacher; sailor; fisher; painter; mechanic; baker; doctor; pilot; scientist; soldier; monk; surfer; skier; climber;
runner; boxer; gardener; carpenter; tailor; student; grandmother; grandfather; bride; clown; magician; street vendor;
barber; blacksmith; photographer; violinist; drummer; singer; shepherd; beekeeper; diver; skateboarder; hiker""",
    "years": "young; middle-aged; old; tall; smiling; tired; laughing; serious; bearded; freckled",
    "hair": """
curly hair; red hair; grey hair; a long braid; short blond hair; round glasses; a beard; a scar; blue eyes; a tattoo;
an umbrella; a backpack; a wide smile""",
    "clothing": """
a {colour} coat; a {colour} dress; a {colour} hat; a {colour} scarf; a {colour} jacket; a suit and tie; overalls; a
raincoat; a wool sweater; a kimono; a sari; a leather jacket; a lab coat; a crown; sunglasses; a swimsuit; armour; a
space suit; traditional dress; a hoodie; an apron; a straw hat; a bow tie; winter clothes""",
    "working": """
reading a book; at work; cooking; dancing; running; playing the guitar; playing chess; riding a {colour} bicycle;
riding a horse; painting a wall; waiting for a train; drinking coffee; looking out of a window; laughing; taking a
photo; carrying {thing}; repairing {thing}; holding {thing}; feeding {animal}; on the phone; asleep; under an
umbrella; in front of {building}; blowing out candles; planting a tree; on a ladder; in a crowd; seen from behind;
waving""",
    "with": "with; holding; next to; painting; looking at; drawing; sitting by; carrying",
    "thing": """
a {colour} {object}; a {colour} {object}; a {material} {object}; a {state} {object}; a {state} {material} {object}; a
{object}; {number} {colour} {object}s; a {colour} and {colour} {object}""",
    "object": """
chair; cup; bowl; vase; book; shoe; wristwatch; guitar; piano; camera; laptop; umbrella; lamp; table; clock; bottle;
teapot; candle; suitcase; mirror; key; ladder; bell; violin; telescope; typewriter; radio; telephone; basket; barrel;
bucket; broom; kite; balloon; ball; drum; trumpet; globe; compass; lantern; hammer; anchor; wheel; door; window; gate;
bench; sofa; bed; pillow; carpet; curtain; hat; glove; ring; necklace; backpack; box; jar; plate; fork; knife; spoon;
kettle; toaster; fan; robot; puppet; teddy bear; toy train; doll; chess piece; mask; flag; sign; statue; fountain;
letter; envelope; pencil; paintbrush; spectacle case; sewing machine; skateboard; surfboard; tent; helmet""",
    "colour": """
red; blue; green; yellow; orange; purple; pink; black; white; grey; brown; turquoise; golden; silver; dark blue; light
green; beige; crimson; violet; cream""",
    "material": """
wooden; glass; metal; stone; plastic; leather; paper; clay; marble; copper; brass; velvet; crystal; porcelain; bamboo;
knitted; iron; concrete; ice; chocolate""",
    "state": """
old; broken; new; shiny; dusty; tiny; giant; antique; rusty; cracked; handmade; empty; striped; transparent; glowing;
folded; floating; upside-down; modern; ornate""",
    "number": "two; three; four; five; many; a row of; a pile of",
    "beside": """
next to; on; under; behind; in front of; inside; leaning against; on top of; between trees beside; larger than;
reflected in; to the left of; to the right of; surrounded by""",
    "vehicle": """
a {colour} {engine}; a {state} {engine}; a {colour} {engine} {moving}; two {engine}s; a {engine} {moving}""",
    "engine": """
car; bicycle; steam train; sailing boat; airplane; bus; motorcycle; spaceship; truck; tram; tractor; helicopter; taxi;
fire engine; canoe; ferry; submarine; hot air balloon; scooter; van; racing car; cable car; fishing boat; rickshaw;
carriage; rocket; glider; barge; ambulance; snowmobile""",
    "moving": """
at full speed; parked; in the rain; stuck in snow; under a bridge; on a country road; at a crossing; racing""",
    "building": """
a {state} {house}; a {material} {house}; a {house}; a {colour} {house}; a {house} covered in {cover}""",
    "house": """
bridge; lighthouse; castle; house; skyscraper; cabin; church; windmill; temple; barn; tower; mosque; pagoda; palace;
library; train station; factory; greenhouse; hotel; shop; cinema; school; museum; petrol station; treehouse; hut;
monastery; stadium; market hall; pier; cottage; ruin; fort; observatory""",
    "cover": "snow; ivy; moss; flowers; frost; graffiti; leaves; scaffolding; lights; dust",
    "plant": """
a {colour} {flower}; a vase of {colour} {flower}s; a field of {flower}s; a {flower} in the rain; a {tree} tree; a
{age} {tree} tree; a bonsai; a cactus; mushrooms on a log; a bunch of {flower}s; a potted fern; moss on a stone""",
    "flower": "rose; tulip; sunflower; daisy; lily; poppy; orchid; lavender; dandelion; iris; dahlia; lotus; crocus",
    "tree": "oak; pine; birch; cherry; olive; palm; maple; willow; apple; cypress; baobab; fir",
    "several": """
a flock of birds; a pile of stones; a crowd of people; a school of fish; a stack of {material} boxes; a shelf of jars;
a herd of {beast}s; rows of {object}s; a heap of {colour} {object}s; {number} {beast}s and a {object}; a pattern of
{colour} and {colour} tiles; a collection of {state} {object}s; a knot of ropes; a wall of {object}s""",
    "fantastic": """
a dragon; a wizard; a knight in armour; a robot; a ghost; a mermaid; a giant; a phoenix; a fairy; an alien; a vampire;
a snowman; a {material} dragon; a {colour} robot; a {beast} made of {cover}; a {beast} with wings; a {beast} the size
of a {house}; a city on the back of a {beast}; a {object} made of clouds; a floating {house}; a {beast} as a {kind}; a
{house} shaped like a {object}; a tiny {kind} in a {object}""",
    "room": """
a kitchen; a library; a living room; a {colour} bedroom; a workshop; a classroom; a hospital corridor; a bathroom; an
attic; a cellar full of {object}s; a coffee shop; a restaurant; an office; a theatre; a laboratory; a garage; a hotel
lobby; a corridor with {colour} doors; a staircase; a room with a {state} {object}; a child's room""",
    "landscape": """
a {ground}; a {ground} {season}; a {ground} with {building}; a {ground} and {sky}; a path through a {ground}; a
{ground} seen from above; a {ground} with {animal}; {sky} over a {ground}; a village by a {ground}""",
    "ground": """
mountain; waterfall; river; forest; desert; beach; lake; island; glacier; valley; canyon; swamp; meadow; vineyard;
volcano; cliff; coral reef; rice terrace; moor; harbour; cave; plain; hill; fjord; jungle; salt flat; orchard; garden;
city skyline; street; park; railway line; wheat field; snowy peak; river delta; geyser""",
    "sky": """
a rainbow; a storm; a starry sky; the milky way; northern lights; a full moon; heavy clouds; a clear sky; lightning;
fog; a red sky; falling snow; two moons; a comet""",
    "season": "in winter; in autumn; in spring; in summer; after a fire; in flood; at harvest; in drought",
    "food": """
a cup of coffee; a bowl of {fruit}s; a slice of pizza; a birthday cake; a plate of sushi; a loaf of bread; a {fruit};
a {fruit} cut in half; a burger; a bowl of soup; pancakes with {fruit}s; a glass of {colour} juice; a plate of pasta;
an ice cream; a cheese board; a salad; a pot of tea; dumplings; a fried egg; a sandwich; a {fruit} tart; tacos; a
roast; a jar of honey; a curry; doughnuts; a box of chocolates; grilled fish; a basket of {fruit}s and a {fruit}""",
    "fruit": """
apple; pear; lemon; orange; peach; plum; fig; mango; pineapple; melon; grape; kiwi; banana; pomegranate; lime""",
    "table": """
; ; on a {material} table; on a {colour} plate; on a checked cloth; in a {state} kitchen; seen from above; at a
picnic; by a window; on a {colour} background; with {light2}""",
    "portrait": """
a portrait of a {years} {kind}; a portrait of a {years} {kind} with {hair}; a portrait of a {kind} in {clothing}; a
close-up of the face of a {years} {kind}; the hands of a {kind}; {art} a {years} {kind} with {hair}; a self-portrait
of a {kind}; a group portrait of {kind}s in {clothing}; a headshot of a {kind}, {mood}""",
    "written": """
{art} {written1}; {photo} {written1} {place}; {photo} {written1}, {mood}; {written1} {place}; {written1} {light}""",
    "written1": """
a sign that says "{word}"; a book titled "{word}"; a neon sign with the word "{word}"; a {colour} shop front with the
word "{word}"; a t-shirt with the letter "{letter}"; a cake with "{word}" on it; a street sign "{word}"; a newspaper
headline "{word}"; the number {digit}{digit} on a {colour} door; a chalkboard with "{word}" written on it""",
    "word": """
open; hello; welcome; love; exit; home; coffee; music; sale; stop; dream; moon; bakery; north; happy; thanks""",
    "letter": "A; B; G; K; M; Q; R; S; T; X",
    "digit": "1; 2; 3; 4; 5; 6; 7; 8; 9",
    "place": """
; ; in a city street; in a forest; on a beach; in the mountains; in a small village; in a desert; at sea; in a studio;
on a rooftop; in a meadow; in an empty room; on the moon; in a busy market; beside a lake; in winter; in autumn; in
spring; underwater; in space; at a harbour; in a tropical garden; on a {colour} background; in a {house}; in front of
{building}; at a {ground}; by a {ground}; in a {state} room; on a stage; in a museum; at a fair; in a cave; on a
train; in a snowy field; on an island; in a subway station; in a park; in a car park; at an airport; in a football
stadium""",
    "light": """
; ; {light1}; {light1}; {light1}; with {light2}""",
    "light1": """
at sunset; at night; in the morning light; in fog; under a cloudy sky; by candlelight; in bright sunlight; at golden
hour; under neon lights; after the rain; at dawn; by moonlight; at noon; in a snowstorm; against the light; by
firelight; under street lamps; in the blue hour; in heavy rain; under a spotlight""",
    "light2": """
soft light; dramatic shadows; a blurred background; a {colour} glow; long shadows; lens flare; film grain; strong
contrast; a shallow depth of field; light from a window; reflections; smoke""",
    "mood": """
peaceful; lonely; cheerful; mysterious; dramatic; cosy; eerie; nostalgic; festive; tense; playful; solemn; dreamy""",
    "quality": """
highly detailed; simple; cinematic; minimal; symmetrical; colourful; realistic; sharp; award-winning; wide angle""",
    "palette": """
in {colour} and {colour}; in black and white; in pastel colours; in muted colours; in bold colours; in sepia; in warm
colours; in cold colours; with a {colour} sky; with thick outlines; on old paper""",
}
_RULES = {name: [" ".join(one.split()) for one in text.split(";")] for name, text in RULES.items()}
_NAME = re.compile(r"\{(\w+)\}(s?\b)?")
_BEFORE_VOWEL = re.compile(r"\ba (?=[aeio]|umbrella|upside)")
_ODD_PLURALS = {"man": "men", "woman": "women", "child": "children", "deer": "deer", "goldfish": "goldfish"}


def prompt(seed: int, number: int) -> str:
    """Prompt `number`, which follows from (seed, number) alone; a few numbers have the same."""
    own = generator(seed, streams.PROMPT, number)

    def expanded(name: str) -> str:
        alternatives = _RULES[name]
        picked = alternatives[int(torch.randint(len(alternatives), (), generator=own))]
        return _NAME.sub(lambda found: plural(expanded(found[1])) if found[2] else expanded(found[1]), picked)

    text = " ".join(expanded("prompt").split()).replace(" ,", ",")
    return _BEFORE_VOWEL.sub("an ", text)


def plural(noun: str) -> str:
    """Of a noun whose last word carries the number."""
    *before, last = noun.split(" ")
    if last in _ODD_PLURALS:
        last = _ODD_PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = f"{last[:-1]}ies"
    elif last == "knife":
        last = "knives"
    else:
        last += "s"
    return " ".join([*before, last])


def grammar(count: int, seed: int = 0) -> list[str]:
    """`count` different prompts; the first n of a longer list are the shorter list."""
    found: dict[str, None] = {}
    number = 0
    while len(found) < count:
        found[prompt(seed, number)] = None
        number += 1
    return list(found)
