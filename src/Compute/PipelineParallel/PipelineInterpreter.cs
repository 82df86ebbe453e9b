using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// Runs a schedule on one rank: the only place where pipeline communication happens. Each action has its own dispose scope; what lives
/// between two actions (an activation that waits to be sent, a gradient that waits to be used) is held here by name.
/// </summary>
/// <remarks>
/// A transfer is two messages, an int64 [2] with the shape and then the data, because rows differ in length from one micro-batch to the
/// next (DESIGN D14): per micro-batch a rank sends 16 bytes and its [t, H] activation for each of its chunks but the model's last, and as much
/// backward for each but the first. Sends are started and awaited later, at most <see cref="MaxPendingSends"/> per peer behind.
/// </remarks>
public sealed class PipelineInterpreter
{
    /// <summary>Transfers to one peer that may be under way; <see cref="ScheduleValidator"/> proves schedules for the same number.</summary>
    public const int MaxPendingSends = 1;

    private readonly ProcessGroup pipeline;
    private readonly PipelineShape shape;
    private readonly ScalarType activationDtype;
    private readonly Device device;
    private readonly Dictionary<(Role Role, int MicroBatch, int Chunk), Tensor> held = [];
    private readonly Dictionary<int, Queue<PendingMessage>> pending = [];

    private enum Role
    {
        Input,
        Output,
        GradOutput,
        GradInput,
    }

    /// <param name="pipeline">The rank's pipeline group; its ranks are the stages.</param>
    /// <param name="numChunks">Model chunks of each stage; 1 when there is one stage.</param>
    /// <param name="activationDtype">Dtype of activations and of their gradients.</param>
    public PipelineInterpreter(ProcessGroup pipeline, int numChunks, ScalarType activationDtype, Device device)
    {
        (this.pipeline, this.activationDtype, this.device) = (pipeline, activationDtype, device);
        shape = new PipelineShape(pipeline.Size, numChunks);
        if (pipeline.Size == 1 && numChunks != 1) throw new ArgumentException($"One stage cannot have {numChunks} chunks; virtual pipelining needs two stages.");
    }

    /// <summary>Runs <paramref name="actions"/> in order and returns when all of this rank's transfers are done.</summary>
    /// <exception cref="RankFaultException">A peer was lost or the attempt was aborted.</exception>
    public void Run(IReadOnlyList<PipelineAction> actions, IPipelineStage stage)
    {
        try
        {
            for (var i = 0; i < actions.Count; i++)
            {
                using var scope = NewDisposeScope();
                var isWhole = i + 1 < actions.Count && actions[i].IsFollowedByItsWeightHalf(actions[i + 1]);
                Execute(actions[i], stage, isWhole);
                if (isWhole) i++;
            }
            foreach (var queue in pending.Values)
                while (queue.Count > 0) Finish(queue);
            if (held.Count > 0) throw new InvalidOperationException($"Pipeline rank {pipeline.Rank}: {held.Count} tensors were made and never used; the schedule is invalid.");
        }
        catch (Exception problem)
        {
            if (pipeline.Size > 1) pipeline.Abort($"stage {pipeline.Rank} failed: {problem.Message}");
            Discard();
            throw;
        }
    }

    /// <param name="isWhole">A backward of both halves.</param>
    private void Execute(PipelineAction action, IPipelineStage stage, bool isWhole)
    {
        var (kind, microBatch, chunk) = action;
        var (isFirst, isLast) = (shape.IsFirst(pipeline.Rank, chunk), shape.IsLast(pipeline.Rank, chunk));
        switch (kind)
        {
            case PipelineActionKind.Forward:
                var output = stage.Forward(microBatch, chunk, isFirst ? null : Take(Role.Input, action));
                if (!isLast) Hold(Role.Output, action, output);
                break;
            case PipelineActionKind.BackwardInput:
                var gradOutput = isLast ? null : Take(Role.GradOutput, action);
                var gradInput = isWhole ? stage.Backward(microBatch, chunk, gradOutput) : stage.BackwardInput(microBatch, chunk, gradOutput);
                if (!isFirst) Hold(Role.GradInput, action, gradInput);
                break;
            case PipelineActionKind.BackwardWeight:
                stage.BackwardWeight(microBatch, chunk);
                break;
            case PipelineActionKind.SendForward:
                Send(Take(Role.Output, action), shape.NextStage(pipeline.Rank));
                break;
            case PipelineActionKind.ReceiveForward:
                Hold(Role.Input, action, Receive(shape.PreviousStage(pipeline.Rank)));
                break;
            case PipelineActionKind.SendBackward:
                Send(Take(Role.GradInput, action), shape.PreviousStage(pipeline.Rank));
                break;
            case PipelineActionKind.ReceiveBackward:
                Hold(Role.GradOutput, action, Receive(shape.NextStage(pipeline.Rank)));
                break;
            default:
                throw new InvalidOperationException($"Unknown pipeline action {kind}.");
        }
    }

    private void Send(Tensor data, int peer)
    {
        if (!pending.TryGetValue(peer, out var queue)) pending[peer] = queue = new Queue<PendingMessage>();
        while (queue.Count > 2 * (MaxPendingSends - 1)) Finish(queue); // a transfer is two messages
        SendMessage(queue, MakeHeader(data.shape), peer);
        SendMessage(queue, data.alias(), peer);
    }

    private void SendMessage(Queue<PendingMessage> queue, Tensor message, int peer)
    {
        var work = pipeline.Send(message, peer);
        queue.Enqueue(new PendingMessage(work, message.DetachFromDisposeScope()));
    }

    private Tensor MakeHeader(long[] extents) => tensor(extents, int64, device);

    private Tensor Receive(int peer)
    {
        var header = zeros(2, dtype: int64, device: device);
        pipeline.Receive(header, peer).Wait();
        var extents = header.cpu().data<long>().ToArray();
        var data = empty(extents, dtype: activationDtype, device: device);
        pipeline.Receive(data, peer).Wait();
        return data;
    }

    /// <summary>Keeps a tensor from one action to a later one. An alias is stored, so the stage may return a tensor that it also keeps.</summary>
    private void Hold(Role role, PipelineAction action, Tensor? tensor)
    {
        if (tensor is null) throw new InvalidOperationException($"Pipeline rank {pipeline.Rank}: {action} gave no tensor for the next stage.");
        if (tensor.shape.Length != 2 || tensor.dtype != activationDtype || !tensor.is_contiguous())
            throw new InvalidOperationException(
                $"Pipeline rank {pipeline.Rank}: {action} gave {tensor.dtype}[{string.Join(", ", tensor.shape)}]; a contiguous {activationDtype} [T, hidden] is needed.");
        if (!held.TryAdd((role, action.MicroBatch, action.Chunk), tensor.alias().DetachFromDisposeScope()))
            throw new InvalidOperationException($"Pipeline rank {pipeline.Rank}: {action} ran twice.");
    }

    /// <summary>Hands a held tensor to the current action's dispose scope.</summary>
    private Tensor Take(Role role, PipelineAction action)
    {
        if (!held.Remove((role, action.MicroBatch, action.Chunk), out var tensor))
            throw new InvalidOperationException($"Pipeline rank {pipeline.Rank}: {action} comes before what it needs.");
        using (tensor) return tensor.alias();
    }

    private static void Finish(Queue<PendingMessage> queue)
    {
        queue.Peek().Work.Wait(); // stays queued when this fails: Discard frees it
        queue.Dequeue().Tensor.Dispose();
    }

    /// <summary>After a failure: the group is aborted, so every wait ends at once.</summary>
    private void Discard()
    {
        foreach (var queue in pending.Values)
            while (queue.TryDequeue(out var message))
            {
                try
                {
                    message.Work.Wait();
                }
                catch (RankFaultException)
                {
                    // The failure that brought us here is already on its way to the caller.
                }
                message.Tensor.Dispose();
            }
        foreach (var tensor in held.Values) tensor.Dispose();
        held.Clear();
    }

    private sealed record PendingMessage(CollectiveWork Work, Tensor Tensor);
}
