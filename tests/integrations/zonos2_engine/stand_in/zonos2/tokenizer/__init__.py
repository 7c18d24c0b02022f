"""A tokenizer process that reports its arguments."""


def tokenize_worker(*, ack_queue, tokenizer_id, addr):
    from zonos2.tokenizer import vocoder

    ack_queue.put(("tokenizer", tokenizer_id, addr, type(vocoder._get_dac).__name__))
