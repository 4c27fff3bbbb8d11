"Small tokenizers of every kind that is in use, made from a few texts."
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from hybrid_nb.data.tokenizers import train_bpe
from hybrid_nb.data.words import build_word_tokenizer

TEXTS = ["The door was red .", "She took the red box from the table and the box was red .",
         "猫が座った", "naïve café"] * 9


def _made(model, trainer, pre=None, decoder=None, normalizer=None, **special):
    tok = Tokenizer(model)
    if pre: tok.pre_tokenizer = pre
    if decoder: tok.decoder = decoder
    if normalizer: tok.normalizer = normalizer
    tok.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tok, clean_up_tokenization_spaces=False, **special)


def byte_level(): return train_bpe(TEXTS, 400)

def words():
    tok = build_word_tokenizer(TEXTS, 100)
    tok.eos_token = tok.bos_token = tok.pad_token
    return tok

def metaspace():
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    space = dict(replacement="▁", prepend_scheme="first")
    return _made(models.BPE(unk_token="<unk>"), trainer, pre_tokenizers.Metaspace(**space), decoders.Metaspace(**space),
                 unk_token="<unk>", bos_token="<s>", eos_token="</s>")

def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>",
                                      show_progress=False)
    return _made(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace(), unk_token="<unk>",
                 eos_token="</s>")

def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    return _made(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(),
                 normalizers.NFC(), unk_token="[UNK]", eos_token="[SEP]")

def appending():
    "Its post-processor puts a token before each text and one after it."
    tok = metaspace()
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tok.bos_token_id), ("</s>", tok.eos_token_id)])
    return tok


def byte_fallback():
    "What is not in the vocabulary is written in bytes, each a token (as Llama 2 does)."
    space = dict(replacement="▁", prepend_scheme="first")
    known = sorted(set("".join(TEXTS[:2])) - {" "})
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *known]
    model = models.BPE({t: i for i, t in enumerate(vocab)}, [], unk_token="<unk>", byte_fallback=True)
    tok = Tokenizer(model)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(**space, split=False)
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, clean_up_tokenization_spaces=False, unk_token="<unk>",
                                   bos_token="<s>", eos_token="</s>")

def turn_tokens():
    "A chat template with control tokens that are no attributes of the tokenizer (as Llama 3 has them)."
    backend = train_bpe(TEXTS, 400).backend_tokenizer
    backend.add_special_tokens(["<|start|>", "<|end|>"])
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>",
                                  clean_up_tokenization_spaces=False)
    tok.chat_template = ("{% for m in messages %}<|start|>{{m.role}}\n{{m.content}}<|end|>{% endfor %}"
                         "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}")
    return tok

def whole_words():
    "A BPE that takes a word as it is, if it is in the vocabulary, also one that is a control token."
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["</s>"], show_progress=False)
    tok = _made(models.BPE(ignore_merges=True), trainer, pre_tokenizers.WhitespaceSplit(), eos_token="</s>")
    tok.backend_tokenizer.decoder = decoders.Fuse()
    return tok

def letters():
    "A model of letters whose texts end with one of them."
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "§"], show_progress=False)
    return _made(models.BPE(unk_token="<unk>"), trainer, decoder=decoders.Fuse(), unk_token="<unk>", eos_token="§")


KINDS = dict(byte_level=byte_level, words=words, metaspace=metaspace, unigram=unigram, word_piece=word_piece,
             appending=appending, byte_fallback=byte_fallback, turn_tokens=turn_tokens, whole_words=whole_words,
             letters=letters)
