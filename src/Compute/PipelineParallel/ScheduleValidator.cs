namespace Megatron.Compute.PipelineParallel;

/// <summary>What <see cref="ScheduleValidator"/> found.</summary>
/// <param name="Problems">One sentence each; empty for a valid schedule.</param>
/// <param name="PeakSavedActivations">For each stage the most (micro-batch, chunk) pairs between Forward and BackwardWeight at one time.</param>
public sealed record ScheduleReport(IReadOnlyList<string> Problems, IReadOnlyList<int> PeakSavedActivations);

/// <summary>
/// Judges a schedule without tensors: every micro-batch forward and backward once in the right order on every stage, each send met by the
/// receive that stands at the same place of its channel, and no deadlock when a sender may run ahead of the receiver by
/// <see cref="PipelineInterpreter.MaxPendingSends"/> messages.
/// </summary>
public static class ScheduleValidator
{
    /// <param name="stages">The action lists of all stages, index = stage.</param>
    /// <param name="isForwardOnly">An evaluation: there must be no backward.</param>
    public static ScheduleReport Check(
        IReadOnlyList<IReadOnlyList<PipelineAction>> stages, PipelineShape shape, int numMicroBatches, bool isForwardOnly)
    {
        var problems = new List<string>();
        if (stages.Count != shape.NumStages) problems.Add($"There are {stages.Count} action lists for {shape.NumStages} stages.");
        else
        {
            for (var stage = 0; stage < stages.Count; stage++) CheckStage(problems, stages[stage], shape, stage, numMicroBatches, isForwardOnly);
            if (problems.Count == 0) Simulate(problems, stages, shape);
        }
        return new ScheduleReport(problems, [.. stages.Select(PeakSaved)]);
    }

    /// <summary>Every action exactly once, none too many, each after the one whose result it needs.</summary>
    private static void CheckStage(
        List<string> problems, IReadOnlyList<PipelineAction> actions, PipelineShape shape, int stage, int numMicroBatches, bool isForwardOnly)
    {
        var position = new Dictionary<PipelineAction, int>();
        for (var i = 0; i < actions.Count; i++)
            if (!position.TryAdd(actions[i], i)) problems.Add($"Stage {stage}: {Describe(actions[i])} occurs twice.");
        var numExpected = 0;
        for (var chunk = 0; chunk < shape.NumChunks; chunk++)
            for (var microBatch = 0; microBatch < numMicroBatches; microBatch++)
            {
                var needed = NeededKinds(shape, stage, chunk, isForwardOnly);
                numExpected += needed.Sum(chain => chain.Length) - (needed.Length - 1); // a branch repeats one action
                foreach (var chain in needed) CheckChain(problems, position, stage, microBatch, chunk, chain);
            }
        if (position.Count > numExpected) problems.Add($"Stage {stage}: {position.Count} different actions where {numExpected} are needed.");
    }

    private static void CheckChain(
        List<string> problems, Dictionary<PipelineAction, int> position, int stage, int microBatch, int chunk, PipelineActionKind[] chain)
    {
        var last = -1;
        foreach (var kind in chain)
        {
            var action = new PipelineAction(kind, microBatch, chunk);
            if (!position.TryGetValue(action, out var at))
            {
                problems.Add($"Stage {stage}: {Describe(action)} is missing.");
                return;
            }
            if (at < last) problems.Add($"Stage {stage}: {Describe(action)} comes before what it needs.");
            last = Math.Max(last, at);
        }
    }

    /// <summary>
    /// Chains of actions of one micro-batch in one chunk, each in its necessary order. Later chains repeat the action at which they branch off.
    /// </summary>
    private static PipelineActionKind[][] NeededKinds(PipelineShape shape, int stage, int chunk, bool isForwardOnly)
    {
        var main = new List<PipelineActionKind>();
        var chains = new List<PipelineActionKind[]>();
        if (!shape.IsFirst(stage, chunk)) main.Add(PipelineActionKind.ReceiveForward);
        main.Add(PipelineActionKind.Forward);
        if (!shape.IsLast(stage, chunk)) main.Add(PipelineActionKind.SendForward);
        if (!isForwardOnly)
        {
            // Nothing can come back before it was sent, so the gradient's receive stands after the send.
            if (!shape.IsLast(stage, chunk)) main.Add(PipelineActionKind.ReceiveBackward);
            main.Add(PipelineActionKind.BackwardInput);
            if (!shape.IsFirst(stage, chunk)) chains.Add([PipelineActionKind.BackwardInput, PipelineActionKind.SendBackward]);
            main.Add(PipelineActionKind.BackwardWeight);
        }
        return [[.. main], .. chains];
    }

    /// <summary>Runs all stages as far as they come, in turn; what is left when none can move is a deadlock.</summary>
    private static void Simulate(List<string> problems, IReadOnlyList<IReadOnlyList<PipelineAction>> stages, PipelineShape shape)
    {
        var channels = new Dictionary<(int From, int To), Queue<Message>>();
        var next = new int[stages.Count];
        bool moved;
        do
        {
            moved = false;
            for (var stage = 0; stage < stages.Count; stage++)
                while (next[stage] < stages[stage].Count && TryStep(problems, channels, shape, stage, stages[stage][next[stage]]))
                {
                    if (problems.Count > 0) return;
                    next[stage]++;
                    moved = true;
                }
        }
        while (moved);
        for (var stage = 0; stage < stages.Count; stage++)
            if (next[stage] < stages[stage].Count) problems.Add($"Deadlock: stage {stage} waits at {Describe(stages[stage][next[stage]])}.");
    }

    /// <summary>False when the stage has to wait: for a message, or because too many of its own are still on their way.</summary>
    private static bool TryStep(
        List<string> problems, Dictionary<(int From, int To), Queue<Message>> channels, PipelineShape shape, int stage, PipelineAction action)
    {
        var (isForward, isSend) = action.Kind switch
        {
            PipelineActionKind.SendForward => (true, true),
            PipelineActionKind.ReceiveForward => (true, false),
            PipelineActionKind.SendBackward => (false, true),
            PipelineActionKind.ReceiveBackward => (false, false),
            _ => ((bool?)null, false),
        };
        if (isForward is not { } forward) return true;
        var peer = forward == isSend ? shape.NextStage(stage) : shape.PreviousStage(stage);
        var key = isSend ? (stage, peer) : (peer, stage);
        if (!channels.TryGetValue(key, out var channel)) channels[key] = channel = new Queue<Message>();
        // A message is named by the virtual stage whose forward output, or that output's gradient, it is.
        var virtualStage = shape.VirtualStage(stage, action.Chunk);
        var edge = forward == isSend ? virtualStage : virtualStage - 1;
        var message = new Message(forward, action.MicroBatch, edge);
        if (isSend)
        {
            // Before message n + Max the interpreter waits until message n was received.
            if (channel.Count >= PipelineInterpreter.MaxPendingSends) return false;
            channel.Enqueue(message);
            return true;
        }
        if (!channel.TryDequeue(out var arrived)) return false;
        if (arrived != message) problems.Add($"Stage {stage} receives {arrived} from stage {peer} where its schedule expects {message}.");
        return true;
    }

    private static int PeakSaved(IReadOnlyList<PipelineAction> actions)
    {
        var (saved, peak) = (0, 0);
        var hasBackward = actions.Any(action => action.Kind == PipelineActionKind.BackwardWeight);
        foreach (var action in actions)
        {
            if (action.Kind == PipelineActionKind.Forward) peak = Math.Max(peak, ++saved);
            if (action.Kind == PipelineActionKind.BackwardWeight) saved--;
        }
        return hasBackward ? peak : 0;
    }

    private static string Describe(PipelineAction action) => $"{action.Kind}(micro-batch {action.MicroBatch}, chunk {action.Chunk})";

    /// <summary>An activation (or its gradient) between virtual stages Edge and Edge + 1.</summary>
    private readonly record struct Message(bool IsActivation, int MicroBatch, int Edge)
    {
        public override string ToString() =>
            $"the {(IsActivation ? "activation" : "gradient")} of micro-batch {MicroBatch} between virtual stages {Edge} and {Edge + 1}";
    }
}
