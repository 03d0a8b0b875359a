// From token ids to the text of an answer: stop strings across token borders, whole UTF-8
// characters only. What is held back is a function of the ids alone, so an interrupted answer goes
// on by replaying them.
#ifndef WORKER_TEXT_H
#define WORKER_TEXT_H
#include <stdbool.h>
#include <stddef.h>
#include "base/buf.h"
#include "model/tokenizer.h"
#include "router/job.h"

typedef struct text_stream {
    const tokenizer *t;
    const job_stop *stops; // borrowed
    int n_stops;
    buf held; // bytes that may still become part of a stop string or of a character
} text_stream;

void text_init(text_stream *s, const tokenizer *t, const job_stop *stops, int n_stops);
// Appends to out what has become certain. True when a stop string is complete: out then ends before
// it, and nothing may be added.
bool text_add(text_stream *s, int32_t id, buf *out);
void text_flush(text_stream *s, buf *out); // the answer ends: what is held is text
void text_release(text_stream *s);

#endif
