using System.Collections.Concurrent;
using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// One started operation of a rank. Its tensors are aliases made, and freed, by the rank's thread; <see cref="Wait"/> returns, also after a
/// fault, only when the lane has let go of them.
/// </summary>
internal sealed class TcpOperation(TcpRoster roster, Tensor? output, Tensor? input, Action body) : CollectiveWork
{
    private bool isWaited;
    private bool isFinished;

    /// <summary>The lane is done with it; written under the roster's gate.</summary>
    public bool IsFinished
    {
        get => Volatile.Read(ref isFinished);
        set => Volatile.Write(ref isFinished, value);
    }

    public bool IsFailed { get; set; }

    /// <summary>What the lane does.</summary>
    public Action Body => body;

    public override bool IsCompleted => IsFinished;

    public override void Wait()
    {
        if (isWaited) return;
        isWaited = true; // also after a fault: Dispose must not throw a second time
        roster.WaitFor(this);
        Release();
        if (IsFailed) throw roster.MakeFault();
    }

    /// <summary>Frees the aliases.</summary>
    public void Release()
    {
        output?.Dispose();
        input?.Dispose();
    }
}

/// <summary>A thread that runs operations one after another: the collectives of a group, or one direction of a pair's transfers.</summary>
internal sealed class TcpLane : IDisposable
{
    private readonly BlockingCollection<TcpOperation> queue = [];
    private readonly TcpRoster roster;
    private readonly Thread thread;
    private int numUnfinished;

    public TcpLane(TcpRoster roster, string name)
    {
        this.roster = roster;
        thread = new Thread(Loop) { IsBackground = true, Name = name };
        thread.Start();
    }

    /// <summary>No operation is queued or running.</summary>
    public bool IsIdle => Volatile.Read(ref numUnfinished) == 0;

    public void Post(TcpOperation operation)
    {
        Interlocked.Increment(ref numUnfinished);
        queue.Add(operation);
    }

    /// <summary>Ends the thread; the group is faulted or idle by now, so it ends soon.</summary>
    public void Dispose()
    {
        queue.CompleteAdding();
        thread.Join();
        queue.Dispose();
    }

    private void Loop()
    {
        foreach (var operation in queue.GetConsumingEnumerable())
        {
            var isFailed = true;
            try
            {
                using var scope = NewDisposeScope();
                roster.ThrowIfFaulted();
                operation.Body();
                isFailed = false;
            }
            catch (RankFaultException)
            {
                // The roster has it; Wait throws it on the rank's thread.
            }
            catch (Exception problem)
            {
                roster.SetFault($"Group {roster.Name}: rank {roster.Describe(roster.Rank)} failed: {problem.Message}", roster.GlobalRanks[roster.Rank]);
            }
            Interlocked.Decrement(ref numUnfinished);
            roster.Finish(operation, isFailed);
        }
    }
}
