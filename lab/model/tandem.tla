------------------------------- MODULE tandem -------------------------------
(***************************************************************************)
(* The core of the protocol (docs/protocol.md), for TLC: one initiator with *)
(* an id of its own, its decision log, participants, sweepers, recovery.    *)
(* A message is never taken away: it may arrive now, later, again, or never.*)
(* Whoever takes no further step has crashed.                               *)
(*                                                                         *)
(* A cross-check of lab/model, which asks the shipped verdicts; what TLC    *)
(* adds is fairness.                                                        *)
(***************************************************************************)
EXTENDS FiniteSets

CONSTANTS Participants, \* their names
          Fence,        \* FALSE: Resolve says aborted of what is undecided, and writes nothing (R4)
          ReadLog       \* FALSE: no answer to COMMIT is taken for aborted (R3)

VARIABLES driver,  \* "new", "prepared", "deciding", "committed", "aborted": what it says
          log,     \* the row of the decision log: "none", "committed", "aborted"
          pending, \* whether a COMMIT was sent that the database is not done with
          part,    \* participant -> "unknown", "prepared", "committed", "aborted"
          sent     \* every message there ever was

vars == <<driver, log, pending, part, sent>>

To(kind, ps) == {<<kind, p>> : p \in ps}

Init == /\ driver = "new"
        /\ log = "none"
        /\ pending = FALSE
        /\ part = [p \in Participants |-> "unknown"]
        /\ sent = To("prepare", Participants)

---------------------------------------------------------------------------
(* The driver *)

Votes == /\ driver = "new"
         /\ To("yes", Participants) \subseteq sent
         /\ driver' = "prepared"
         /\ UNCHANGED <<log, pending, part, sent>>

Says(what, kind) == /\ driver' = what
                    /\ sent' = sent \cup To(kind, Participants)

GivesUp == /\ driver \in {"new", "prepared"} \* nobody else can decide its id (R3)
           /\ Says("aborted", "abort")
           /\ UNCHANGED <<log, pending, part>>

Decides == /\ driver = "prepared"
           /\ driver' = "deciding"
           /\ pending' = (log = "none") \* else the plain INSERT fails (R1, R2)
           /\ UNCHANGED <<log, part, sent>>

Hears == /\ driver = "deciding"
         /\ log = "committed"
         /\ Says("committed", "commit")
         /\ UNCHANGED <<log, pending, part>>

Settles == /\ driver = "deciding" \* fences where nothing is there, then reads (R3)
           /\ ReadLog => ~pending /\ log # "committed"
           /\ log' = IF ReadLog THEN "aborted" ELSE log
           /\ Says("aborted", "abort")
           /\ UNCHANGED <<pending, part>>

---------------------------------------------------------------------------
(* The initiator's database, and recovery *)

CommitEnds == /\ pending
              /\ pending' = FALSE
              /\ log' \in {"committed", "none"} \* done, or rolled back
              /\ UNCHANGED <<driver, part, sent>>

Recovery == /\ log = "committed"
            /\ sent' = sent \cup To("commit", Participants)
            /\ UNCHANGED <<driver, log, pending, part>>

---------------------------------------------------------------------------
(* A participant, and its sweeper *)

Becomes(p, state, kinds) == /\ part' = [part EXCEPT ![p] = state]
                            /\ sent' = sent \cup {<<kind, p>> : kind \in kinds}
                            /\ UNCHANGED <<driver, log, pending>>

Prepare(p) == /\ <<"prepare", p>> \in sent
              /\ part[p] = "unknown"
              /\ Becomes(p, "prepared", {"yes"})

Commit(p) == /\ <<"commit", p>> \in sent
             /\ part[p] = "prepared"
             /\ Becomes(p, "committed", {"ack"})

Abort(p) == /\ <<"abort", p>> \in sent
            /\ part[p] \in {"unknown", "prepared"} \* a tombstone, where it overtakes its Prepare
            /\ Becomes(p, "aborted", {})

Sweep(p) == /\ part[p] = "prepared"
            /\ ~pending \* or the fence waits for it, and the answer is IN_PROGRESS (R4)
            /\ log' = IF log = "none" /\ Fence THEN "aborted" ELSE log
            /\ sent' = sent \cup {<<IF log = "committed" THEN "commit" ELSE "abort", p>>}
            /\ UNCHANGED <<driver, pending, part>>

---------------------------------------------------------------------------

Next == \/ Votes \/ GivesUp \/ Decides \/ Hears \/ Settles
        \/ CommitEnds \/ Recovery
        \/ \E p \in Participants : Prepare(p) \/ Commit(p) \/ Abort(p) \/ Sweep(p)

(* Databases, sweepers and recovery run; the driver may be gone at any time. *)
Fairness == /\ WF_vars(CommitEnds)
            /\ WF_vars(Recovery)
            /\ \A p \in Participants : WF_vars(Commit(p)) /\ WF_vars(Abort(p)) /\ WF_vars(Sweep(p))

Spec == Init /\ [][Next]_vars /\ Fairness

Atomic == \A p \in Participants :
            /\ part[p] = "committed" => log = "committed"
            /\ part[p] = "aborted" => log # "committed"

Honest == /\ driver = "committed" => log = "committed"
          /\ driver = "aborted" => log # "committed" /\ ~pending

NoContradiction == \A p \in Participants :
            /\ ~(<<"commit", p>> \in sent /\ part[p] \in {"unknown", "aborted"})
            /\ ~(<<"abort", p>> \in sent /\ part[p] = "committed")

DecidedOnce == [][log # "none" => log' = log]_vars

Live == \A p \in Participants : part[p] = "prepared" ~> part[p] \in {"committed", "aborted"}
=============================================================================
