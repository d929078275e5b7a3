/*
 * A frame's way from a writer that waits for nobody to our reader: is what the reader accepts whole?
 *
 * The writer is the DAO library's (daoBase, src/c/dao.c), in its own order of stores; the reader is src/shm/reader.rs, in
 * its own order of loads. One statement is one load or one store, and any number of the other's steps may come between
 * two of them, or none ever again: a writer that is interrupted or dead. That is all that x86 adds too: stores become
 * visible in their order and loads are done in theirs, and what waits in a store buffer is a writer that is a little late.
 *
 * ORDER, how the writer stores a frame, in words (the library's functions are daoShmImage2Shm,
 * daoShmImagePart2ShmFinalize and daoShmTimestampShm; dates are those of its main branch):
 *   LIBRARY  write=1, pixels, write=0, in a ring the slot becomes the last one, time, counter: since September 2025, and
 *            with the ring since spring 2026
 *   OLD      write=1, pixels, write=0, counter, time: until April 2025
 *   OURS     write=1, pixels, time, counter, write=0, slot: src/shm/writer.rs
 *   NEVER0   write=1, pixels, time, counter: April to September 2025, v0.0.1 among them. `write` is never cleared, so
 *            the reader accepts nothing; the model says that it does not accept by mistake either
 * DEPTH, frames in the ring, 1 where there is none. FRAMES, how many are begun. DEATHS, how often the writer may die at any
 * step and be started again; in a ring the next one then gives counters that were given before.
 * LARGE: the second look at the pixels (the witness) sees no difference. It compares a small frame whole, a large one
 * at 64 cache lines, and two frames may be equal there.
 * PARTS: frames come in two packets, write=1, part, packetNb, write=0, and then as above (daoShmImagePart2Shm).
 * QUIET: every other frame has no time and no counter, only write=1, pixels, write=0 (daoShmImage2ShmQuiet).
 *
 * LENT: the reader takes a ring's frame from where it stands, as src/shm/loan.rs does, and looks afterwards whether the
 * writer may have been there. It has no window, since it does not ask whether the writer is there, but whether it can be;
 * but for the first turn after a writer died before it counted.
 *
 * THE WINDOW. Between write=0 and the time, the writer's next store but one, new pixels stand under the old time and
 * counter. A writer that overtook the reader's copy and is interrupted there has left no mark on the header. The
 * witness sees it, unless the frame is LARGE. So a torn frame is accepted in one window only: LARGE, and the writer
 * between those two stores (in a ring: before the slot becomes the last one) when the reader looks at `write` for the last
 * time. And it is used only if the writer has not stored its counter when `still_whole` is asked, or has died there and
 * another one writes already. PARTS have the same window between two packets, at every size: the format's own fault.
 * What is accepted in the window and is not torn is the next frame under the last one's counter: it may come twice.
 *
 * -DWINDOW_TOO asserts that no torn frame is accepted in the window either, -DDIED_TOO that none is used after a writer
 * died in it: spin must find that they are. So it must with each of these, which takes a check away from the reader:
 * NO_FLAG, NO_STAMP, NO_WITNESS, NO_UNFINISHED, NO_STILL_WHOLE, and of a LENT frame NO_DISTANCE; and with STAMP_FIRST, which looks whether a ring's slot is
 * unfinished only after the stamp, as the reader once did: the writer may have finished in between.
 */
#define LIBRARY 1
#define OLD     2
#define OURS    3
#define NEVER0  4

#ifndef ORDER
#define ORDER LIBRARY
#endif
#ifndef DEPTH
#define DEPTH 1
#endif
#ifndef FRAMES
#define FRAMES 4
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#define BEFORE(slot) ((slot + DEPTH - 1) % DEPTH)

/* The segment. A frame's pixels are two words, and both are its number: whole is when they are the same. Its time is
   that number too, since no two frames have one time. */
bool writing[DEPTH];
byte word0[DEPTH], word1[DEPTH], part[DEPTH], time[DEPTH], cnt0[DEPTH];
byte last = DEPTH - 1;

/* What only the model knows. */
byte begun;                  /* frames begun */
byte counter_of[FRAMES + 1]; /* the counter that a frame got; 0: none yet */
bool window[DEPTH];          /* write=0, and no mark of the new pixels yet that the reader could see */
bool unmarked[DEPTH];        /* the same, or not all marks */
bool uncounted[DEPTH];       /* write=0, and not the new counter yet */
bool died_uncounted;         /* a writer died in that state */
bool kill;                   /* the writer dies at its next step */
byte deaths;

inline store_pixels() {
    if /* a copy may go either way */
    :: word0[slot] = me; word1[slot] = me
    :: word1[slot] = me; word0[slot] = me
    fi
}

inline set_window(is)  { window[slot] = is; unmarked[slot] = is; uncounted[slot] = is }
inline set_flag()      { d_step { writing[slot] = true; set_window(false) } }
inline clear_flag()    { d_step { writing[slot] = false; set_window(ORDER != OURS) } }
inline store_time() {
    d_step { time[slot] = me; window[slot] = false; unmarked[slot] = unmarked[slot] && counter_of[me] == 0 }
}
inline store_counter() {
    d_step {
        cnt0[slot] = cnt0[BEFORE(slot)] + 1;
        counter_of[me] = cnt0[slot];
        window[slot] = false; unmarked[slot] = unmarked[slot] && time[slot] != me; uncounted[slot] = false
    }
}
/* A ring's newest slot under a counter older than its neighbour's is recognized, unless a dead writer has left such
   counters behind. */
inline store_last() {
    d_step {
        last = slot;
        if
        :: DEATHS == 0 && cnt0[slot] < cnt0[BEFORE(slot)] -> window[slot] = false; unmarked[slot] = false
        :: else
        fi
    }
}

active proctype writer() {
    byte slot, me;
again:
    {
        do
        :: begun < FRAMES ->
            d_step { begun++; me = begun; slot = (last + 1) % DEPTH }
            set_flag();
#ifdef PARTS
            word0[slot] = me;
            part[slot] = 1;
            clear_flag();
            d_step { writing[slot] = true; window[slot] = false; unmarked[slot] = false };
            word1[slot] = me;
            part[slot] = 2;
            clear_flag();
#else
            store_pixels();
#endif
#ifdef QUIET
            if
            :: me % 2 == 0 -> clear_flag(); goto quiet
            :: else
            fi;
#endif
#if ORDER == LIBRARY
            clear_flag();
            store_last();
            store_time();
            store_counter();
#elif ORDER == OLD
            clear_flag();
            store_counter();
            store_time();
#elif ORDER == NEVER0
            store_time();
            store_counter();
#else
            store_time();
            store_counter();
            clear_flag();
            store_last();
#endif
#ifdef QUIET
quiet:      skip
#endif
        :: else -> break
        od
    } unless {
        kill -> d_step { kill = false; deaths++; died_uncounted = died_uncounted || uncounted[slot] };
        goto again
    }
}

/* A writer that dies for good needs no step: it may do none any more wherever it stands. */
active proctype killer() {
    do
    :: deaths < DEATHS && !kill -> kill = true
    :: deaths == DEATHS -> break
    od
}

/* Reader::stamp, as far as a writer here changes it. */
inline load_stamp(p, c, t) { p = part[slot]; c = cnt0[slot]; t = time[slot] }

/* Segment::unfinished: the last slot of a ring already, and under a counter older than its neighbour's. */
inline look_if_unfinished() {
#if DEPTH > 1 && !defined(NO_UNFINISHED)
    if
    :: last == slot ->
        c1 = cnt0[slot];
        d_step { unfinished = (c1 < cnt0[BEFORE(slot)]); c1 = 0 }
    :: else -> unfinished = false
    fi
#else
    unfinished = false
#endif
}

/* The closure `untouched` of Reader::copy. */
inline look_if_untouched() {
    d_step {
#ifdef NO_FLAG
        ok = true;
#else
        ok = !writing[slot];
#endif
        in_window = window[slot];
        was_unmarked = unmarked[slot]
    };
#ifndef STAMP_FIRST
    look_if_unfinished();
#endif
    load_stamp(p1, c1, t1);
#ifndef NO_STAMP
    ok = ok && p1 == p0 && c1 == c0 && t1 == t0;
#endif
    d_step { p1 = 0; c1 = 0; t1 = 0 };
#ifdef STAMP_FIRST
    look_if_unfinished();
#endif
    ok = ok && !unfinished
}

/* Segment::newest. */
inline load_newest_of(at, count) {
    at = last;
    count = cnt0[at];
#if DEPTH > 1 && !defined(NO_UNFINISHED)
    c1 = cnt0[BEFORE(at)];
    if
    :: count < c1 -> at = BEFORE(at); count = c1
    :: else
    fi;
    c1 = 0
#endif
}
inline load_newest() { load_newest_of(slot, counter) }

/* Loan::since: `ok` if the writer cannot have begun to write there. */
inline look_how_far() {
    load_newest_of(p1, t1);
#ifdef NO_DISTANCE
    ok = true;
#else
    ok = (t1 >= counter && t1 - counter + 1 < DEPTH);
#endif
    d_step { p1 = 0; t1 = 0 };
#ifndef NO_FLAG
    ok = ok && !writing[slot];
#endif
    d_step { ok = ok && cnt0[slot] == counter; in_window = uncounted[slot] };
#ifndef NO_STAMP
    d_step { ok = ok && time[slot] == t0; in_window = in_window || uncounted[slot] }
#endif
}

/* Reader::choose: of a ring the oldest frame first, if it is where it should be. */
inline choose() {
#if DEPTH > 1
    if
    :: DEPTH - attempt > 1 && attempt < 2 && (started || restarted) ->
        oldest = (seen + 1 > counter + 1 + attempt - DEPTH -> seen + 1 : counter + 1 + attempt - DEPTH);
        c1 = (slot + DEPTH - (counter - oldest) % DEPTH) % DEPTH;
        if
        :: cnt0[c1] == oldest -> slot = c1; counter = oldest
        :: else
        fi;
        c1 = 0; oldest = 0
    :: else
    fi
#else
    skip
#endif
}

active proctype reader() {
    byte slot, counter, seen, attempt, got0, got1, p0, c0, t0, p1;
    short c1, t1, oldest;
    bool newest_wanted, ok, unfinished, started, restarted, in_window, was_unmarked;
    do
    :: true ->
        d_step { attempt = 0; slot = 0; counter = 0; unfinished = false };
        if
        :: newest_wanted = false /* Reader::read_next */
        #ifndef LENT
        :: newest_wanted = true /* Reader::read_newest */
#endif
        fi;
        do
        :: attempt < 4 ->
            load_newest();
            if
            :: counter < seen -> restarted = true; seen = 0
            :: else
            fi;
            if
            :: newest_wanted
            :: !newest_wanted && counter == seen -> break
            :: !newest_wanted && counter != seen -> choose()
            fi;
#ifdef LENT
            /* Reader::lend_next, and Loan. */
            t0 = time[slot];
            look_how_far();
            if
            :: !ok -> goto torn
            :: else
            fi;
            if
            :: got0 = word0[slot]; got1 = word1[slot]
            :: got1 = word1[slot]; got0 = word0[slot]
            fi;
            look_how_far();
            if
            :: !ok -> goto torn
            :: else
            fi;
            d_step {
                /* Its own counter, and whole; but for one that is written right after a writer died before it counted: then
                   what the writer has counted does not tell how far it is. */
                assert(got0 == got1 && counter_of[got0] == counter || died_uncounted && in_window);
                seen = counter; started = true; restarted = false;
                ok = false; got0 = 0; got1 = 0; in_window = false; t0 = 0
            };
            break;
#endif
            /* Reader::copy. Waiting for `write` is looking a little later; giving up is starting over. */
            if
            :: !writing[slot]
            :: writing[slot] -> goto torn
            fi;
            look_if_unfinished();
            if
            :: unfinished -> goto torn
            :: else
            fi;
            load_stamp(p0, c0, t0);
            if
            :: c0 != counter -> goto torn
            :: else
            fi;
            if /* a copy may go either way */
            :: got0 = word0[slot]; got1 = word1[slot]
            :: got1 = word1[slot]; got0 = word0[slot]
            fi;
            look_if_untouched();
            if
            :: !ok -> goto torn
            :: else
            fi;
#if !defined(LARGE) && !defined(NO_WITNESS)
            if
            :: got0 != word0[slot] -> goto torn
            :: else
            fi;
            if
            :: got1 != word1[slot] -> goto torn
            :: else
            fi;
#endif
            look_if_untouched();
            if
            :: !ok -> goto torn
            :: else
            fi;
            /* Accepted. */
            d_step {
#if ORDER == NEVER0
                assert(c0 == 0);
#endif
#if (defined(LARGE) || defined(PARTS)) && !defined(WINDOW_TOO)
                assert(got0 == got1 || in_window);
#else
                assert(got0 == got1);
#endif
#ifndef QUIET
                /* Its own counter and time, or in the window those of the frame before. */
                assert(was_unmarked || counter_of[got0] == c0 && t0 == got0);
#endif
                /* The reader's caller is told of counters that start over. */
                assert(c0 > seen || restarted || newest_wanted && c0 == seen);
                seen = c0; started = true; restarted = false;
                p0 = 0; t0 = 0
            };
            /* A little later the caller asks Reader::still_whole, and uses the frame if so. */
            d_step { ok = (cnt0[slot] == c0); in_window = uncounted[slot] };
#ifdef NO_STILL_WHOLE
            ok = true;
#endif
            #ifndef DIED_TOO
            in_window = in_window || died_uncounted;
#endif
            assert(!ok || got0 == got1 || in_window);
            d_step { c0 = 0; ok = false; got0 = 0; got1 = 0; in_window = false; was_unmarked = false };
            break;
torn:
            attempt++;
            d_step { p0 = 0; c0 = 0; t0 = 0; got0 = 0; got1 = 0; ok = false; in_window = false; was_unmarked = false }
        :: else -> break
        od
    od
}
