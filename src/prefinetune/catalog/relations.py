"""Relations: between two marked terms of a sentence, or between a citing text and the work it cites."""

from prefinetune.catalog.record import record, words
from prefinetune.families import Classification
from prefinetune.sources import Hub

CHEMPROT = words("""
    ACTIVATOR AGONIST AGONIST-ACTIVATOR AGONIST-INHIBITOR ANTAGONIST DOWNREGULATOR INDIRECT-DOWNREGULATOR
    INDIRECT-UPREGULATOR INHIBITOR PRODUCT-OF SUBSTRATE SUBSTRATE_PRODUCT-OF UPREGULATOR
""")

NOMINALS = words("""
    Cause-Effect(e1,e2) Cause-Effect(e2,e1) Component-Whole(e1,e2) Component-Whole(e2,e1)
    Content-Container(e1,e2) Content-Container(e2,e1) Entity-Destination(e1,e2) Entity-Destination(e2,e1)
    Entity-Origin(e1,e2) Entity-Origin(e2,e1) Instrument-Agency(e1,e2) Instrument-Agency(e2,e1)
    Member-Collection(e1,e2) Member-Collection(e2,e1) Message-Topic(e1,e2) Message-Topic(e2,e1)
    Product-Producer(e1,e2) Product-Producer(e2,e1) Other
""")

SCIERC = ("COMPARE", "CONJUNCTION", "EVALUATE-FOR", "FEATURE-OF", "HYPONYM-OF", "PART-OF", "USED-FOR")
CITATIONS = ("Background", "CompareOrContrast", "Extends", "Future", "Motivation", "Uses")

# fmt: off
TASKS = [
    record("chemprot", Hub(None), Classification("text", labels=CHEMPROT),
           "relation biomedical", license="Apache-2.0 (source repo)", cite="Kringelum et al. 2016"),
    record("sciie/relation", Hub(None), Classification("text", labels=SCIERC),
           "relation scientific", license="Apache-2.0 (source repo)", cite="Luan et al. 2018, arXiv 1808.09602"),
    record("sem_eval_2010_task_8", Hub("SemEvalWorkshop/sem_eval_2010_task_8"),
           Classification("sentence", label="relation", labels=NOMINALS),
           "relation", license="MIT (source repo); data set licence unknown", cite="Hendrickx et al. 2010, S10-1006"),
    record("acl_arc/citation_intent", Hub(None), Classification("text", labels=CITATIONS),
           "citation scientific", license="Apache-2.0 (source repo)", cite="Jurgens et al. 2018, Q18-1028"),
]
