"""Verbs with which a docstring may open. A verb that is missing here can be added."""

_WORDS = """
abort accept access acknowledge acquire activate adapt add adjust admit advance advertise aggregate align
allocate allow analyse announce answer append apply approve arrange ask assemble assert assign attach
attempt attend authenticate authorize average avoid await balance batch begin bind block bound break bring
broadcast build bump cache calculate calibrate call cancel cap capture cast catch change check choose
claim clamp classify clean clear clip clone close coerce collapse collate collect combine come commit
compare compile compress compute concatenate configure confirm connect construct consume contain continue
convert copy correct count cover create crop cut deactivate decide declare decode decompress decorate
deduplicate defer define delay delegate delete deliver derive describe deserialize destroy detach detect
determine disable discard disconnect discover dispatch dispose distribute divide do document download
drain draw drop dump duplicate embed emit empty enable encode end enforce enqueue ensure enter enumerate
escape establish estimate evaluate evict examine exclude execute exhaust exit expand expect expire explain
export expose extend extract fail fall feed fetch fill filter find finish fit flag flatten flush fold
follow forbid force forget format forward free freeze fuse gather generate get give go grant group grow
guard guess halt halve hand handle hash have hide hold identify ignore implement import include increase
increment index infer inform inherit initialise initialize inject insert inspect install instantiate
interpret intersect invalidate invoke isolate iterate join judge keep kill label launch lay lead learn
leave let limit link list listen load locate lock log look loop lower make manage map mark mask match
measure merge migrate mirror mock modify monitor mount move multiply name narrow negotiate normalise
normalize note notify obtain offer omit open optimise optimize order override own pack pad pair parse
partition pass patch pause peek perform permit persist pick place plan point poll pool pop populate post
postpone predict prefer prefetch prepare prepend preprocess present preserve prevent print process produce
prohibit promote propagate protect prove provide prune publish pull push put quantise quantize query queue
quit quote raise raises rank read rebuild recalculate receive recognise recognize recompute reconnect
record recover reduce refer refresh refuse register reject relabel release reload rely remember remove
rename render renew reopen reorder repair repeat replace reply report represent request require rerank
reschedule reserve reset reshape resize resolve respond restart restore restrict resume retain retrieve
retry return returns reuse reverse revert rewrite roll rotate round route run sample save say scale scan
schedule score search see seed select send separate serialise serialize serve set share shed shift shorten
show shrink shut signal simplify simulate skip sleep slice smooth sort spawn specify split squeeze stack
stand start stop store stream strip submit substitute subtract sum summarise summarize supply support
suppress suspend swap switch synchronise synchronize take tell terminate test throttle time tokenise
tokenize touch trace track transcribe transfer transform translate transpose traverse trigger trim
truncate try turn unblock undo unfold unify uninstall unload unlock unpack unpad unquote unregister unset
unwrap update upgrade upload use validate verify view visit vote wait wake walk warm warn watch weigh
widen wire withdraw work wrap write yield yields zip
"""

VERBS = frozenset(_WORDS.split())
