"""The words that may stand in a goal.

A goal with any other word is refused: that word may be the point of it (another optimizer, another model, cookies).
"""

import re

_FUNCTION = """
a about above across after again all along also although am among an and any are around as at be because become been
before being below better between both but by can could do does doing done down during each either else enough even
every few for from further had has have having how i if in into is it its just least less like many may me might more
most much must my near need neither next no none not of off on once one only or other our out over own per please
rather same shall she should since so some still such than that the their them then there these they this those three
through thus to together too toward towards two under until up upon us use used uses using v versus very via vs want
wants was way we well were what when where whether which while who why will with within without would you your
"""

_RESEARCH = """
ability ablate ablation able absence accurate achieve actually add adding affect against aim allow alternative amount
analyse analysis analyze answer applied apply applying approach appropriate ask assess assessing available average
avoid bad baseline beat beaten behave behavior behaviour benchmark benefit best better big bigger bound brief bring
budget careful carefully carry cause change changes cheap cheaper cheaply check choice choose claim clear close common
compare compared comparing comparison compete computational compute computer concern conclude conduct configuration
configurations confirm cons consider constant consumption contrast control controlled correct cost count cross curious
current cut decide decrease decreasing default degrade degree demonstrate depend depends describe design detail detect
determine differ difference different dimension dimensions disable disabled disabling discover do double doubling
dramatically drop dropping earlier early easy economical effect effective effectively effectiveness efficiency
efficient efficiently empirical enable enabling end equal equally especially establish estimate evaluate evaluation
examine example expect expected expensive experiment experimental explain explore factor fair fairly family fast
faster favor favour feasible figure final find finding fit fitting fix fixed fluctuate fluctuation footprint form free
fully fundamental future gain general generally get give goal good great grow half halve halving happen happened
happens harm harmful help high higher hold hurt hypothesis hypothesise idea ideal identify impact implement
implication importance important improve improvement include inconclusive increase increasing independent influence
initial inside insight instead interest interesting introduce investigate investigation issue iteration iterations job
keep kind kindly know laptop large larger late later lead learn length let level like limit little local locally long
longer look lose lots low lower lowest magnitude main make marginal matter maximum mean meaningful measure measurement
medium memory method minimal minimum mode moderate modest motivate motivation narrow narrower necessary needed new
noticeable noticeably number objective observe obtain off often optimal option options order outcome outperform
outperforms overall overhead pair paired part particular peak penalty percent perform performance performing pick
plain play please point policies policy possible practical practice prefer preferable preserve prevent prior probe
problem process produce progress project properly pros prove provide purpose quadruple quality quantify quantity
quarter question quick quickly quite raise ram range rate rather ratio reach real reason recommend recommended reduce
reducing reduction reference regime relation relationship relative relevant reliable remain removing replace replicate
report reproduce request requirement research respect respond response result reveal right role run sacrifice same
save saved saving savings scale scenario schedule scheme script second see seed seeds seem sensitive sensitivity
separate server set setting setup several shall shape share short shorter show shrink signal significant significantly
similar simple simply single situation size sizes slightly slow slower small smaller smallest so some source space
specific speed spend stable standard start statistical statistically stay step still stop strategies strategy strength
strong stronger strongly study substantial substantially suffice suggest superior sure sweep switch synthetic take
task technique tell tend test tests threshold thresholds time tiny topic toy track trade tradeoff trial triple try
tune tuned tuning turn twice type typical under undergo understand unit update updates usage use useful usual validate
value variant variation variety various vary varying verification verify versus very view want weak weaker whatever
whole wide wider width win winner winning wise work workable worse worst worth zero
"""

_FIELD = """
accuracy activation activations ai algorithm architecture attention backpropagation batch block char character
checkpoint classification classifier clip clipped clipping converge convergence cpu cuda curve data dataset decoder
deep deeper device digit digits diverge divergence dynamic dynamics entropy epoch error explode exploding feed
feedforward finite forward full gap generalisation generalise generalization generalize gpu gradient gradients half
distributed ddp eight four
handwritten hyper hyperparameter hyperparameters instabilities instability language layer learning linear linearly llm
llms lm lms loss losses machine metric mini mixed ml mlp model modeling modelling models nan nans net nets network
networks multiple multi neural nlp noise noisy non norm numeric numerical numerics optimisation optimise optimization optimize
overfit overfitting overflow parallel parallelise parallelism parallelize
parameter pass perceptron perplexity precision regularisation regularise regularization
regularize robust robustness run runs savings sequence single smooth smoothness spike spikes stabilise stability
stabilize text token train trained trainer training transformer transformers unclipped underfitting underflow unstable
val throughput validation weight weights worker workload
"""

_FACTORS = """
adam adamw amp autocast batch batch_size batches bf bf16 bfloat bfloat16 checkpointing checkpoints clip clipping
d_model decay decoupled descent dim dimension dimensionality dims embedding float float16 float32 fp fp16 fp32 grad
gradient grads hidden hidden_dim hidden_size l2 lion lr minibatch momentum norm optimiser optimisers optimizer
optimizers penalty precision recomputation rms rmsprop sgd stochastic units up warm warming warmup warmups wd
weight_decay width
"""

_WORDS = frozenset(f"{_FUNCTION} {_RESEARCH} {_FIELD} {_FACTORS}".split())
_SUFFIXES = ("s", "es", "ed", "d", "ing", "ly", "er", "'s")
_NUMBER = re.compile(r"(?<!\w)\d[\d.,]*(?:e[-+]?\d+)?x?(?!\w)", re.IGNORECASE)
_TOKEN = re.compile(r"[^\W_][\w']*")


def unknown_words(text: str) -> list[str]:
    """The words of the text that are not in the vocabulary, in order and once each."""
    found = (word for word in _TOKEN.findall(_NUMBER.sub(" ", text)) if not _known(word.lower()))
    return list(dict.fromkeys(found))


def _known(word: str) -> bool:
    if word in _WORDS:
        return True
    stems = [word.removesuffix(suffix) for suffix in _SUFFIXES if word.endswith(suffix)]
    return any(stem in _WORDS or stem + "e" in _WORDS for stem in stems if len(stem) > 2)
