"""Topic and kind of a text: news, newsgroups, questions, spam, clickbait, truthfulness, partisanship."""

from prefinetune.catalog.record import record, words
from prefinetune.families import Classification
from prefinetune.sources import PARQUET, Hub

NEWSGROUPS = words("""
    alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware
    comp.windows.x misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt
    sci.electronics sci.med sci.space soc.religion.christian talk.politics.guns talk.politics.mideast
    talk.politics.misc talk.religion.misc
""")

# fmt: off
TASKS = [
    record("ag_news", Hub("fancyzhx/ag_news"), Classification("text", labels=("World", "Sports", "Business", "Sci/Tech")),
           "topic news", cite="Zhang et al. 2015, arXiv 1509.01626",
           note="mirror: about 5,000 of the official training rows"),
    record("SetFit/20_newsgroups", Hub("SetFit/20_newsgroups"), Classification("text", labels=NEWSGROUPS),
           "topic", cite="Lang 1995",
           note="without headers and quotes, which give the group away; the hub's copy also holds empty texts"),
    record("trec", Hub("CogComp/trec", "default", PARQUET),
           Classification("text", label="coarse_label", labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")),
           "question-type", cite="Li and Roth 2002, C02-1150; Hovy et al. 2001, H01-1069",
           note="what a question asks for, of six kinds; fine_label has fifty"),
    record("hyperpartisan_news_detection/byarticle",
           Hub("SemEvalWorkshop/hyperpartisan_news_detection", "byarticle", PARQUET),
           Classification(("title", "text"), label="hyperpartisan", labels=("not hyperpartisan", "hyperpartisan")),
           "news partisanship", license="CC BY 4.0", cite="Kiesel et al. 2019", evaluation_only=True,
           note="training rows only, so that some are held out; articles with their HTML"),
    record("reuters/r8", Hub(None),
           Classification("text", labels=("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")),
           "topic news", note="lower case, no punctuation"),
    record("clickbait", Hub(None), Classification("text", labels=("not_clickbait", "clickbait")),
           "clickbait news", license="MIT", cite="Chakraborty et al. 2016, arXiv 1610.09786"),
    record("sms_spam", Hub("ucirvine/sms_spam", "plain_text"), Classification("sms", labels=("ham", "spam")),
           "spam", cite="Almeida et al. 2011", note="some messages stand in several rows"),
    record("liar", Hub("ucsbnlp/liar"),
           Classification("statement",
                          labels=("false", "half-true", "mostly-true", "true", "barely-true", "pants-fire")),
           "veracity", cite="Wang 2017, arXiv 1705.00648",
           note="the speaker's counts on the hub include the row's own label: never an input"),
]
