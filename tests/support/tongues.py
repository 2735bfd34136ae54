"""Words of many languages, to make texts of: what an encoding is told by."""

from random import Random

TONGUES = {
    "German": "das Haus ist größer als die Hütte über dem Fluss und für viele Gäste schön früh öffnet Straße Tür Äpfel "
    "Übung weiß später Brücke können müssen Lösung Gemüse heute Abend Zeit ohne jeder kein mehr nach unter Jahr",
    "French": "le château était fermé à cause de la fête où les élèves français ont été très gênés après la leçon déjà "
    "forêt rivière même âge hôtel août naïf cœur sœur garçon reçu être connaît dîner année prix maison jardin pluie",
    "Spanish": "el niño comió mañana después del español también está en la montaña según razón canción árbol pingüino "
    "año señor qué cómo aquí río país corazón médico última rápido público ciudad tierra noche tarde agua campo",
    "Portuguese": "não há razão para a informação da nação são três pães é possível você está amanhã coração mãe irmão "
    "água história público português situação ações lições também até já avó avô cidade tempo vida noite mundo",
    "Italian": "perché la città è più bella così virtù università libertà però già caffè verità qualità può lunedì "
    "felicità metà attività possibilità giù né società strada casa giorno notte tempo amico parola fiume monte",
    "Swedish": "på gården står en röd häst och några får är också där för att äta gräs men vägen går över ån höger "
    "björn älg sjö träd människa hjärta år språk läsa höra först sedan skola barn vinter sommar vatten himmel",
    "Danish": "på øen står en rød hest og nogle får er også der for at æde græs men vejen går over åen til højre bjørn "
    "sø træ menneske hjerte år sprog læse høre først siden skole børn vinter sommer vand himmel køkken stå",
    "Finnish": "tämä päivä on hyvä ja kylmä yö tulee pian mökki järven rannalla äiti isä lähtevät kävelemään metsään "
    "työ syödä pöytä käsi näkyy sää lämmin vesi talvi kesä kirja koulu lapsi aurinko taivas maa kivi puu tie",
    "Polish": "książka leży na stole i żółw idzie przez łąkę gdzie rośnie dąb więc święto będzie już jutro źródło ćma "
    "późno człowiek miłość życie świat słońce dziś też się są może być różne liść sześć tysiąc dom rzeka droga",
    "Czech": "příliš žluťoučký kůň úpěl ďábelské ódy že dům stojí na břehu řeky když přišel večer můžeme ještě říci "
    "člověk láska svět život město děti škola řeka včera zítra něco někdo úterý středa čtvrtek voda hora les noc",
    "Slovak": "človek môže ešte stáť na brehu rieky keď prišiel večer dieťa ľúbi svoju mačku a päť vtákov spieva vôňa "
    "hôr šťastie žena život veľký krásny deň ďakujem prosím čas škola mesto láska stĺp vŕba voda noc ruka hlava",
    "Hungarian": "a ház előtt áll egy öreg tölgyfa és a gyerekek őszi délután játszanak körülötte mert jó idő van még "
    "szép könyv fűszer tűz víz hősök város szőlő gyűrű útján nő férfi élet halál erdő út föld ég nap éjszaka",
    "Croatian": "čovjek živi u kući pored šume gdje rastu češnjevi i žute ruže dok dječak trči preko ceste vođa riječ "
    "šest noć kuća šuma život želja čaša međutim također sljedeći već češće grad more nebo ruka voda dan",
    "Turkish": "ağaç güneş ışığı altında büyüyor ve çocuklar şarkı söylüyor çünkü bugün çok güzel bir gün değil öğle "
    "yağmur gökyüzü kış şehir ülke dünya küçük büyük sıcak soğuk kapı yıl doğru için deniz ev yol su gece",
    "Lithuanian": "šiandien graži diena ir žmonės eina į mišką rinkti grybų nes ąžuolai jau meta lapus ėjo vėjas "
    "žiema pavasarį vaikų namų širdis gyvenimas mūsų jūsų šalis miestas upė kelias naktis saulė vanduo",
    "Russian": "человек стоит на берегу реки и смотрит вдаль где солнце садится за горы потому что вечер уже пришёл "
    "дом книга вода жизнь любовь мир город дети школа ночь рука голова большой хороший новый первый день год",
    "Ukrainian": "людина стоїть на березі річки і дивиться де сонце сідає за гори бо вечір уже прийшов дім книга вода "
    "життя любов світ місто діти школа ніч рука її їхній є ще ґанок великий добрий новий перший день рік",
    "Bulgarian": "човек стои на брега на реката и гледа как слънцето залязва зад планините защото вечерта вече дойде "
    "къща книга вода живот любов свят град деца училище нощ ръка глава голям добър нов първи ден година",
    "Greek": "ο άνθρωπος στέκεται στην όχθη του ποταμού και κοιτάζει τον ήλιο που δύει πίσω από τα βουνά γιατί ήρθε το "
    "βράδυ σπίτι βιβλίο νερό ζωή αγάπη κόσμος πόλη παιδιά σχολείο νύχτα χέρι κεφάλι μεγάλος καλός νέος πρώτος",
    "Hebrew": "האיש עומד על גדת הנהר ומביט בשמש השוקעת מאחורי ההרים כי הערב כבר בא בית ספר מים חיים אהבה עולם עיר",
    "Arabic": "يقف الرجل على ضفة النهر وينظر إلى الشمس وهي تغرب خلف الجبال لأن المساء قد جاء بيت كتاب ماء حياة حب عالم",
    "Thai": "ผู้ชาย ยืน อยู่ ริม แม่น้ำ และ มอง ดวงอาทิตย์ ตก หลัง ภูเขา เพราะ ตอนเย็น มาถึง แล้ว บ้าน น้ำ ชีวิต รัก โลก",
    "Japanese": "灯台守は 毎晩 ランプに 油を 差し、 霧が 出ると 鐘を 鳴らした。 船は 港に 戻り、 海は 静かに なった。",
    "Chinese": "灯塔 看守人 每天 晚上 给 灯 加油， 起雾 时 敲钟。 船 回到 港口， 大海 平静 下来。 人们 都 在 家里。",
    "Korean": "등대지기는 매일 밤 등불에 기름을 넣고 안개가 끼면 종을 울렸다. 배는 항구로 돌아오고 바다는 조용해졌다.",
    "English": "the “old” keeper’s lamp — lit at dusk … cost £40 and the ‘new’ one’s oil was €5 or 20 % more than",
}


def sentences(tongue: str, *, words: int, seed: int) -> str:
    """Text of so many words in sentences, with a number now and then."""
    chance = Random(f"{tongue}/{seed}")
    known = TONGUES[tongue].split()
    parts: list[str] = []
    for number in range(words):
        word = chance.choice(known) if chance.random() > 0.04 else str(chance.randint(1, 2030))
        parts.append(word.capitalize() if number % 8 == 0 else word)
    return "".join(word + (".\n" if number % 8 == 7 else " ") for number, word in enumerate(parts)).strip() + "."
