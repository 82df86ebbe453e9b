using System.Diagnostics;
using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>One rank's part of a collective. The tensors are aliases made, and freed, by the rank that entered.</summary>
internal sealed class LoopbackCall
{
    /// <summary>Operation, dtype and shape: must be the same on all ranks.</summary>
    public required string Signature { get; init; }

    public Tensor? Output { get; init; }

    public Tensor? Input { get; init; }

    public long[]? OutputSplits { get; set; }

    public long[]? InputSplits { get; set; }

    /// <summary>Computes all outputs from all inputs; null for a barrier.</summary>
    public Action<LoopbackCall[]>? Combine { get; set; }

    public void Release()
    {
        Output?.Dispose();
        Input?.Dispose();
    }
}

/// <summary>
/// What the ranks of one loopback group share. The n-th collective of each rank meets in the n-th slot; sends and receives meet in one
/// queue per direction. Everything happens under one lock, also the arithmetic: a rank that is released by a fault can therefore never
/// free a tensor that another thread is still reading.
/// </summary>
internal sealed class LoopbackHub(string name, IReadOnlyList<int> globalRanks, TimeSpan timeout)
{
    // A Monitor object and not a Lock: ranks wait on it for pulses.
    private readonly object gate = new();
    private readonly Dictionary<long, Meeting> meetings = [];
    private readonly long[] nextMeeting = new long[globalRanks.Count];
    private readonly Dictionary<(int Sender, int Receiver), Queue<Meeting>> channels = [];
    private readonly HashSet<int> departed = [];
    private readonly TimeSpan[] blocked = new TimeSpan[globalRanks.Count];
    private (string Message, int? Culprit)? fault;

    public string Name => name;

    public IReadOnlyList<int> GlobalRanks => globalRanks;

    /// <summary>An alias that keeps the storage alive whatever the rank does with its own tensor.</summary>
    public static Tensor Hold(Tensor tensor) => tensor.alias().DetachFromDisposeScope();

    /// <summary>Enters the next collective; the last rank to come computes it. The returned work frees the call's tensors in Wait.</summary>
    public CollectiveWork Enter(int rank, LoopbackCall call)
    {
        lock (gate)
        {
            if (fault is not null)
            {
                call.Release();
                throw MakeFault();
            }
            var number = nextMeeting[rank]++;
            if (!meetings.TryGetValue(number, out var meeting))
                meetings[number] = meeting = new Meeting(globalRanks.Count) { Title = $"collective {number}" };
            meeting.Calls[rank] = call;
            CheckSignatures(meeting, rank);
            if (meeting.IsComplete && fault is null)
            {
                meetings.Remove(number);
                Run(meeting, calls => calls[0].Combine?.Invoke(calls));
            }
            return new Work(this, meeting, rank);
        }
    }

    /// <summary>Starts one half of a transfer; whoever comes second copies.</summary>
    public CollectiveWork Post(int sender, int receiver, Tensor tensor, bool isSend)
    {
        var call = new LoopbackCall { Signature = $"{tensor.dtype} x {tensor.numel()}", Input = Hold(tensor) };
        lock (gate)
        {
            if (fault is not null)
            {
                call.Release();
                throw MakeFault();
            }
            var self = isSend ? sender : receiver;
            if (!channels.TryGetValue((sender, receiver), out var queue)) channels[(sender, receiver)] = queue = new Queue<Meeting>();
            if (!queue.TryPeek(out var meeting) || meeting.Calls[self] is not null)
            {
                queue.Enqueue(meeting = new Meeting(globalRanks.Count) { Title = $"transfer {sender} -> {receiver}", Pair = (sender, receiver) });
                meeting.Calls[self] = call;
                return new Work(this, meeting, self);
            }
            queue.Dequeue();
            meeting.Calls[self] = call;
            CheckSignatures(meeting, self);
            if (fault is null) Run(meeting, _ => Copy(meeting, sender, receiver));
            return new Work(this, meeting, self);
        }
    }

    /// <summary>Ends all operations of the group with a fault; the first reason stays.</summary>
    public void Abort(string reason)
    {
        lock (gate) SetFault($"Group {name} was aborted: {reason}", null);
    }

    /// <summary>The rank will not enter anything any more.</summary>
    public void Leave(int rank)
    {
        lock (gate)
        {
            departed.Add(rank);
            Monitor.PulseAll(gate);
        }
    }

    private static void Copy(Meeting meeting, int sender, int receiver)
    {
        var source = meeting.Calls[sender]?.Input ?? throw new InvalidOperationException("The transfer has no sender.");
        var target = meeting.Calls[receiver]?.Input ?? throw new InvalidOperationException("The transfer has no receiver.");
        target.view(-1).copy_(source.view(-1));
    }

    private void Run(Meeting meeting, Action<LoopbackCall[]> compute)
    {
        try
        {
            using var scope = NewDisposeScope();
            compute([.. meeting.Calls.OfType<LoopbackCall>()]);
            meeting.IsDone = true;
        }
        catch (Exception problem)
        {
            SetFault($"Group {name}, {meeting.Title}: {problem.Message}", null);
        }
        Monitor.PulseAll(gate);
    }

    private void CheckSignatures(Meeting meeting, int rank)
    {
        for (var other = 0; other < meeting.Calls.Length; other++)
        {
            if (meeting.Calls[other] is not { } theirs || meeting.Calls[rank] is not { } ours || theirs.Signature == ours.Signature) continue;
            SetFault(
                $"Group {name}, {meeting.Title}: rank {Describe(rank)} called {ours.Signature} while rank {Describe(other)} called " +
                $"{theirs.Signature}; all ranks of a group must make the same calls in the same order.", null);
            return;
        }
    }

    private void SetFault(string message, int? culprit)
    {
        fault ??= (message, culprit);
        Monitor.PulseAll(gate);
    }

    private RankFaultException MakeFault() => fault is { } known
        ? new RankFaultException(known.Message, known.Culprit)
        : throw new InvalidOperationException("There is no fault.");

    private bool IsOver(Meeting meeting)
    {
        lock (gate) return meeting.IsDone || fault is not null;
    }

    /// <summary>How long a rank has waited in this group; asked on the rank's thread.</summary>
    public TimeSpan BlockedTimeOf(int rank) => blocked[rank];

    private void Wait(Meeting meeting, int rank)
    {
        var start = Stopwatch.GetTimestamp();
        var deadline = start + (long)(timeout.TotalSeconds * Stopwatch.Frequency);
        lock (gate)
        {
            while (!meeting.IsDone && fault is null)
            {
                var missing = meeting.Missing().ToArray();
                var gone = missing.Where(departed.Contains).ToArray();
                var left = deadline - Stopwatch.GetTimestamp();
                if (gone.Length > 0)
                    SetFault($"Group {name}, {meeting.Title}: rank {Describe(gone[0])} left the group while rank {Describe(rank)} waits for it.", globalRanks[gone[0]]);
                else if (left <= 0)
                    SetFault(FormattableString.Invariant(
                        $"Group {name}, {meeting.Title} ({meeting.Calls[rank]?.Signature}): rank {Describe(rank)} waited {timeout.TotalSeconds} s for rank {string.Join(", ", missing.Select(Describe))}."),
                        globalRanks[missing[0]]);
                else Monitor.Wait(gate, TimeSpan.FromMilliseconds(Math.Min(1000 * (left / (double)Stopwatch.Frequency) + 1, 60_000)));
            }
            blocked[rank] += Stopwatch.GetElapsedTime(start);
            meeting.Calls[rank]?.Release();
            if (!meeting.IsDone) throw MakeFault();
        }
    }

    private string Describe(int rank) => $"{rank} (global {globalRanks[rank]})";

    /// <summary>One collective or transfer: the calls that have come so far, by rank in the group.</summary>
    private sealed class Meeting(int size)
    {
        public LoopbackCall?[] Calls { get; } = new LoopbackCall?[size];

        public required string Title { get; init; }

        /// <summary>The two ranks of a transfer; null for a collective.</summary>
        public (int Sender, int Receiver)? Pair { get; init; }

        public bool IsDone { get; set; }

        public bool IsComplete => Array.TrueForAll(Calls, call => call is not null);

        public IEnumerable<int> Missing() =>
            Enumerable.Range(0, Calls.Length).Where(rank => Calls[rank] is null && (Pair is not { } pair || rank == pair.Sender || rank == pair.Receiver));
    }

    private sealed class Work(LoopbackHub hub, Meeting meeting, int rank) : CollectiveWork
    {
        private bool isFinished;

        public override bool IsCompleted => isFinished || hub.IsOver(meeting);

        public override void Wait()
        {
            if (isFinished) return;
            isFinished = true; // also after a fault: Dispose must not throw a second time
            hub.Wait(meeting, rank);
        }
    }
}
