using System.Diagnostics;

namespace Megatron.Compute.Distributed;

/// <summary>
/// What one rank knows of the others in a group: the operations they have started, who has left, and the fault that ended the group, if
/// any. Filled by the control connections; everything else waits on it.
/// </summary>
internal sealed class TcpRoster(string name, int rank, IReadOnlyList<int> globalRanks, TimeSpan timeout)
{
    /// <summary>Monitor.Wait does not take arbitrarily long times.</summary>
    public static readonly TimeSpan LongestWait = TimeSpan.FromMinutes(1);

    /// <summary>A peer that is further ahead than this does not follow the protocol.</summary>
    private const int MaxNoticesAhead = 1 << 16;

    // A Monitor object and not a Lock: ranks and lanes wait on it for pulses.
    private readonly object gate = new();
    private readonly Dictionary<(int Peer, TcpFrameKind Kind, long Number), TcpFrame> notices = [];
    private readonly Dictionary<(int Peer, TcpFrameKind Kind), long> numbers = [];
    private readonly int[] numNoticesAhead = new int[globalRanks.Count];
    private readonly HashSet<int> departed = [];
    private TcpFrame? fault;

    /// <summary>Tells the peers of a fault that was found here; set once, before the group is used.</summary>
    public required Action<TcpFrame> TellPeers { get; init; }

    public string Name => name;

    public int Rank => rank;

    public IReadOnlyList<int> GlobalRanks => globalRanks;

    public TimeSpan Timeout => timeout;

    public bool IsFaulted => Volatile.Read(ref fault) is not null;

    /// <summary>For messages: index in the group and global rank.</summary>
    public string Describe(int peer) => $"{peer} (global {globalRanks[peer]})";

    /// <summary>Ends all operations, here and on the peers; the first fault stays.</summary>
    public void SetFault(string message, int? culpritRank)
    {
        var newFault = new TcpFrame(TcpFrameKind.Abort, culpritRank ?? -1, message, []);
        if (Keep(newFault)) TellPeers(newFault);
    }

    /// <summary>Ends all operations here only; says whether this fault is the first.</summary>
    public bool Keep(TcpFrame newFault)
    {
        lock (gate)
        {
            var isFirst = fault is null;
            fault ??= newFault;
            Monitor.PulseAll(gate);
            return isFirst;
        }
    }

    /// <exception cref="RankFaultException">The group has ended.</exception>
    public void ThrowIfFaulted()
    {
        if (IsFaulted) throw MakeFault();
    }

    public RankFaultException MakeFault() => fault is { } known
        ? new RankFaultException(known.Text, known.Number is >= 0 and <= int.MaxValue ? (int)known.Number : null)
        : throw new InvalidOperationException("There is no fault.");

    /// <summary>Takes a message of a peer.</summary>
    /// <exception cref="InvalidDataException">The peer does not follow the protocol.</exception>
    public void Deliver(int peer, TcpFrame frame)
    {
        lock (gate)
        {
            switch (frame.Kind)
            {
                case TcpFrameKind.Abort:
                    fault ??= frame;
                    break;
                case TcpFrameKind.Leave:
                    departed.Add(peer);
                    break;
                default:
                    var last = numbers.GetValueOrDefault((peer, frame.Kind), -1);
                    if (frame.Number != last + 1) throw new InvalidDataException($"{frame.Kind} number {frame.Number} after {last}");
                    if (++numNoticesAhead[peer] > MaxNoticesAhead) throw new InvalidDataException($"more than {MaxNoticesAhead} operations ahead");
                    numbers[(peer, frame.Kind)] = frame.Number;
                    notices.Add((peer, frame.Kind, frame.Number), frame);
                    break;
            }
            Monitor.PulseAll(gate);
        }
    }

    /// <summary>The connection to a peer has ended: a fault, unless the peer took its leave.</summary>
    public void Lose(int peer, string detail)
    {
        lock (gate)
        {
            if (departed.Contains(peer)) return;
        }
        SetFault($"Group {name}: rank {Describe(peer)} is lost ({detail}).", globalRanks[peer]);
    }

    /// <summary>A payload connection has ended. Its reason is on its way on the control connection: an abort, or the peer's death.</summary>
    public RankFaultException AwaitFaultOf(int peer)
    {
        var started = Stopwatch.GetTimestamp();
        lock (gate)
        {
            while (fault is null && Stopwatch.GetElapsedTime(started) < TimeSpan.FromMilliseconds(500))
                Monitor.Wait(gate, TimeSpan.FromMilliseconds(50));
        }
        SetFault($"Group {name}: rank {Describe(peer)} closed its connection.", globalRanks[peer]);
        return MakeFault();
    }

    /// <summary>
    /// Waits until <paramref name="peers"/> have started the matching operation and takes their notices, in the order of the peers.
    /// </summary>
    /// <param name="kind">What the peers announce.</param>
    /// <exception cref="RankFaultException">One did not come or called something else, or the group has ended.</exception>
    public TcpFrame[] Await(TcpFrameKind kind, long number, IReadOnlyList<int> peers, string title, string signature)
    {
        var started = Stopwatch.GetTimestamp();
        while (true)
        {
            (string Message, int? Culprit)? problem;
            lock (gate)
            {
                ThrowIfFaulted();
                var left = timeout - Stopwatch.GetElapsedTime(started);
                problem = ProblemOf(kind, number, peers, title, signature, isLate: left <= TimeSpan.Zero);
                if (problem is null)
                {
                    if (peers.All(peer => notices.ContainsKey((peer, kind, number)))) return [.. peers.Select(peer => Take(peer, kind, number))];
                    Monitor.Wait(gate, left < LongestWait ? left : LongestWait);
                    continue;
                }
            }
            SetFault(problem.Value.Message, problem.Value.Culprit); // outside the gate: it writes to the peers
        }
    }

    /// <summary>Lets the rank that waits for <paramref name="operation"/> go on.</summary>
    public void Finish(TcpOperation operation, bool isFailed)
    {
        lock (gate)
        {
            operation.IsFailed = isFailed;
            operation.IsFinished = true;
            Monitor.PulseAll(gate);
        }
    }

    /// <summary>How long the rank has waited in <see cref="WaitFor"/>; on its thread only.</summary>
    public TimeSpan BlockedTime { get; private set; }

    /// <summary>Returns when no thread touches the operation's tensors any more. The lane that runs it keeps the time.</summary>
    public void WaitFor(TcpOperation operation)
    {
        var start = Stopwatch.GetTimestamp();
        lock (gate)
            while (!operation.IsFinished) Monitor.Wait(gate);
        BlockedTime += Stopwatch.GetElapsedTime(start);
    }

    /// <summary>Nothing has moved for as long as an operation may wait.</summary>
    public RankFaultException TimeoutOf(string title, IEnumerable<int> peers)
    {
        int[] slow = [.. peers];
        SetFault(FormattableString.Invariant(
            $"Group {name}, {title}: rank {Describe(rank)} exchanged nothing for {timeout.TotalSeconds} s with rank {string.Join(", ", slow.Select(Describe))}."),
            globalRanks[slow[0]]);
        return MakeFault();
    }

    private (string Message, int? Culprit)? ProblemOf(TcpFrameKind kind, long number, IReadOnlyList<int> peers, string title, string signature, bool isLate)
    {
        foreach (var peer in peers)
            if (notices.TryGetValue((peer, kind, number), out var notice) && notice.Text != signature)
            {
                var (first, second) = rank < peer ? ((rank, signature), (peer, notice.Text)) : ((peer, notice.Text), (rank, signature));
                return ($"Group {name}, {title}: rank {Describe(first.Item1)} called {first.Item2} while rank {Describe(second.Item1)} called " +
                    $"{second.Item2}; all ranks of a group must make the same calls in the same order.", null);
            }
        int[] missing = [.. peers.Where(peer => !notices.ContainsKey((peer, kind, number)))];
        int[] gone = [.. missing.Where(departed.Contains)];
        if (gone.Length > 0)
            return ($"Group {name}, {title}: rank {Describe(gone[0])} left the group while rank {Describe(rank)} waits for it.", globalRanks[gone[0]]);
        if (missing.Length == 0 || !isLate) return null;
        return (FormattableString.Invariant(
            $"Group {name}, {title} ({signature}): rank {Describe(rank)} waited {timeout.TotalSeconds} s for rank {string.Join(", ", missing.Select(Describe))}."),
            globalRanks[missing[0]]);
    }

    private TcpFrame Take(int peer, TcpFrameKind kind, long number)
    {
        numNoticesAhead[peer]--;
        notices.Remove((peer, kind, number), out var notice);
        return notice ?? throw new InvalidOperationException("The notice was there.");
    }
}
