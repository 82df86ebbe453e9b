namespace Megatron.Compute.PipelineParallel;

/// <summary>Time that each kind of computation takes, in any unit: what a timeline is drawn with.</summary>
/// <param name="Forward">One chunk forward.</param>
/// <param name="BackwardInput">Its input-gradient half.</param>
/// <param name="BackwardWeight">Its weight-gradient half.</param>
public readonly record struct PipelineCosts(int Forward, int BackwardInput, int BackwardWeight)
{
    /// <summary>All halves alike: a matrix product has as much work in each.</summary>
    public static PipelineCosts Equal { get; } = new(1, 1, 1);

    /// <summary>Cost of a kind; transfers take no time.</summary>
    public int Of(PipelineActionKind kind) => kind switch
    {
        PipelineActionKind.Forward => Forward,
        PipelineActionKind.BackwardInput => BackwardInput,
        PipelineActionKind.BackwardWeight => BackwardWeight,
        _ => 0,
    };
}

/// <summary>A computation and when it runs.</summary>
public readonly record struct TimedAction(PipelineAction Action, int Begin, int End);

/// <summary>
/// When each stage computes what, given the order of its computations: each begins when the stage is free and its input has been made.
/// From it follow the idle time of a schedule and the places of its transfers.
/// </summary>
public sealed class PipelineTimeline
{
    private readonly PipelineShape shape;

    /// <summary>Computations of each stage, in order.</summary>
    public IReadOnlyList<IReadOnlyList<TimedAction>> Stages { get; }

    /// <summary>End of the last computation.</summary>
    public int Length => Stages.Max(stage => stage.Count == 0 ? 0 : stage[^1].End);

    /// <summary>Share of the stages' time in which nothing is computed.</summary>
    public double BubbleFraction => 1.0 - Stages.Sum(stage => stage.Sum(timed => timed.End - timed.Begin)) / ((double)Length * Stages.Count);

    private PipelineTimeline(PipelineShape shape, IReadOnlyList<IReadOnlyList<TimedAction>> stages) => (this.shape, Stages) = (shape, stages);

    /// <summary>Times the computations among <paramref name="stages"/> (transfers are passed over).</summary>
    /// <exception cref="InvalidOperationException">The orders wait for one another for ever.</exception>
    public static PipelineTimeline Of(IReadOnlyList<IReadOnlyList<PipelineAction>> stages, PipelineShape shape, PipelineCosts costs)
    {
        var orders = stages.Select(stage => stage.Where(action => costs.Of(action.Kind) > 0).ToArray()).ToArray();
        var result = orders.Select(order => new List<TimedAction>(order.Length)).ToArray();
        var ends = new Dictionary<(int Stage, PipelineAction Action), int>();
        for (var moved = true; moved;)
        {
            moved = false;
            for (var stage = 0; stage < orders.Length; stage++)
                while (result[stage].Count < orders[stage].Length && ReadyAt(ends, shape, stage, orders[stage][result[stage].Count]) is { } ready)
                {
                    var action = orders[stage][result[stage].Count];
                    var begin = Math.Max(ready, result[stage].Count == 0 ? 0 : result[stage][^1].End);
                    ends[(stage, action)] = begin + costs.Of(action.Kind);
                    result[stage].Add(new TimedAction(action, begin, begin + costs.Of(action.Kind)));
                    moved = true;
                }
        }
        for (var stage = 0; stage < orders.Length; stage++)
            if (result[stage].Count < orders[stage].Length)
                throw new InvalidOperationException($"Stage {stage} waits for ever at {orders[stage][result[stage].Count]}.");
        return new PipelineTimeline(shape, result);
    }

    /// <summary>
    /// The full schedules: a send stands behind the computation that made its data, the matching receive on the other stage at the same
    /// moment. All stages meet their transfers in the order of one clock, so that the earliest one not done can always be done: no deadlock,
    /// even if a send waits for its receive.
    /// </summary>
    public IReadOnlyList<IReadOnlyList<PipelineAction>> WithTransfers()
    {
        // Sorted by (moment, transfers before what begins then, sending stage and its order).
        var events = Enumerable.Range(0, Stages.Count).Select(_ => new List<((int, int, int, int) Key, PipelineAction Action)>()).ToArray();
        for (var stage = 0; stage < Stages.Count; stage++)
            for (var i = 0; i < Stages[stage].Count; i++)
            {
                var (action, begin, end) = Stages[stage][i];
                events[stage].Add(((begin, 1, stage, i), action));
                if (SendOf(stage, action) is not { } transfer) continue;
                var key = (end, 0, stage, i);
                events[stage].Add((key, transfer.Send));
                events[transfer.Peer].Add((key, transfer.Receive));
            }
        return [.. events.Select(list => list.OrderBy(item => item.Key).Select(item => item.Action).ToArray())];
    }

    private (int Peer, PipelineAction Send, PipelineAction Receive)? SendOf(int stage, PipelineAction action)
    {
        if (action.Kind == PipelineActionKind.Forward && !shape.IsLast(stage, action.Chunk))
        {
            var peer = shape.NextStage(stage);
            var chunk = peer == 0 ? action.Chunk + 1 : action.Chunk;
            return (peer, action with { Kind = PipelineActionKind.SendForward }, new PipelineAction(PipelineActionKind.ReceiveForward, action.MicroBatch, chunk));
        }
        if (action.Kind == PipelineActionKind.BackwardInput && !shape.IsFirst(stage, action.Chunk))
        {
            var chunk = stage == 0 ? action.Chunk - 1 : action.Chunk;
            return (shape.PreviousStage(stage), action with { Kind = PipelineActionKind.SendBackward },
                new PipelineAction(PipelineActionKind.ReceiveBackward, action.MicroBatch, chunk));
        }
        return null;
    }

    /// <summary>When the input of a computation is there; null while it has not been made.</summary>
    private static int? ReadyAt(Dictionary<(int Stage, PipelineAction Action), int> ends, PipelineShape shape, int stage, PipelineAction action)
    {
        int? EndOf(int atStage, PipelineActionKind kind, int chunk) =>
            ends.TryGetValue((atStage, new PipelineAction(kind, action.MicroBatch, chunk)), out var end) ? end : null;
        switch (action.Kind)
        {
            case PipelineActionKind.Forward:
                if (shape.IsFirst(stage, action.Chunk)) return 0;
                return EndOf(shape.PreviousStage(stage), PipelineActionKind.Forward, stage == 0 ? action.Chunk - 1 : action.Chunk);
            case PipelineActionKind.BackwardInput:
                if (EndOf(stage, PipelineActionKind.Forward, action.Chunk) is not { } forward) return null;
                if (shape.IsLast(stage, action.Chunk)) return forward;
                var next = shape.NextStage(stage);
                return EndOf(next, PipelineActionKind.BackwardInput, next == 0 ? action.Chunk + 1 : action.Chunk);
            default:
                return EndOf(stage, PipelineActionKind.BackwardInput, action.Chunk);
        }
    }
}
