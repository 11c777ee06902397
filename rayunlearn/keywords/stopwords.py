"""English words that no keyword begins, ends or contains: function words, and the verbs and
adjectives of reporting.

Other languages have no list here; `phrases.common_words` finds theirs from the corpus.
"""

_ENGLISH = """
a able about above according accordingly achieve achieved achieves across additionally address
addressed addresses after afterwards again against aim aims al all allow allowed allows almost alone
along already also although always am among amongst amoungst amount an and another any anyhow anyone
anything anyway anywhere appear appears applied applies apply applying approach appropriate are
aren't argue argued argues around article as at author authors available away back based basically
be became because become becomes becoming been before beforehand begin begins behind being below
beside besides best better between beyond both bottom but by call called can can't cannot cant case
cases certain certainly clearly co common commonly compare compared compares comparing con consider
considered considers consist consists contain contained contains corresponding could couldn't
couldnt currently de demonstrate demonstrated demonstrates describe described describes despite
determine determined determines develop developed did didn't different directly discuss discussed
discusses do does doesn't doing don't done down due during each easily effectively efficient eg
eight either eleven else elsewhere empty enable enabled enables enough especially et etc evaluate
evaluated evaluates even ever every everyone everything everywhere exactly examine examined examines
example examples except exist existing exists explore explored explores far few fifteen fifty fill
finally find finding finds first five focus focuses followed following follows for form former
formerly forms forty found four from front full fully further furthermore g general get gets getting
give given gives giving go goes going gone good got greater had has hasnt have having he help helps
hence her here hereafter hereby herein hereupon hers herself high highly him himself his hold holds
how however hundred i i'm ideally ie if illustrate illustrated important improve improved improves
in inc include included includes including increase increased increases indeed instead interesting
into introduce introduced introduces investigate investigated investigates involve involved involves
is isn't it it's its itself just keep kind kinds known large last later latter latterly lead leading
leads least less let let's like likely low ltd made main mainly make makes making many may me mean
means meanwhile might mine more moreover most mostly move much must my myself name namely nearly
necessary need needed needs neither never nevertheless new newly next nine no nobody non none noone
nor normally not nothing novel now nowhere number obtain obtained obtains obviously occur occurring
occurs of off often okay on once one only onto or order other others otherwise our ours ourselves
out over overall own paper part particular per perform performed performs perhaps play plays please
possible potential present presented presents previous previously probably propose proposed proposes
provide provided provides put quite rather re really recent recently reduce reduced reduces
regarding relatively remain remains report reported reports require required requires requiring
respectively result results reveal revealed reveals role s said same say says second see seem seemed
seeming seems seen self sensible serious seriously set seven several she should show showed shown
shows side significant significantly similar simply since sincere six sixty small so some somehow
someone something sometime sometimes somewhat somewhere soon specific still study sub such suggest
suggested suggests suitable sure t take taken takes taking ten tend tended tends terms than that
that's the their them themselves then thence there there's thereafter thereby therefore therein
thereupon these they thick thin third this those though three through throughout thru thus to today
together too top toward towards traditional tries try trying twelve twenty two type types ultimately
un under unlike until up upon us use used useful uses using usually various versus very via want was
way ways we well went were what what's whatever when whence whenever where whereafter whereas
whereby wherein whereupon wherever whether which while whither who who's whoever whole whom whose
why will wish with within without won't work working works would wouldn't year years yet you you're
your yours yourself yourselves
"""

ENGLISH = frozenset(_ENGLISH.split())
