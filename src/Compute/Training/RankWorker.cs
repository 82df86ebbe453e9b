using System.Collections.Concurrent;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;

namespace Megatron.Compute.Training;

/// <summary>What one attempt of a job does on the rank's thread: see <see cref="TrainingRun"/>.</summary>
public interface IRankProgram : IDisposable
{
    /// <summary>Runs to the end on the rank's thread; throws when it cannot go on.</summary>
    void Run(RankLink link);

    /// <summary>Releases the thread from collectives; called from any thread, any number of times.</summary>
    void Abort(string reason);
}

/// <summary>
/// The thread that owns one device and every tensor on it (DESIGN D2). It takes commands from a queue, runs one attempt at a time and
/// turns whatever goes wrong into a report: an exception never leaves the thread.
/// </summary>
public sealed class RankWorker : IRankWorker
{
    private readonly BlockingCollection<RankCommand> inbox = [];
    private readonly Func<StartRank, IRankProgram> makeProgram;
    private readonly TaskCompletionSource ended = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly Lock gate = new();
    private Action<RankReport> sink = _ => { };
    private (AttemptId Attempt, IRankProgram Program)? running;

    /// <inheritdoc/>
    public int LocalRank { get; }

    /// <param name="localRank">Index of the device on this node.</param>
    /// <param name="makeProgram">Makes the program of an attempt; called on the rank's thread.</param>
    public RankWorker(int localRank, Func<StartRank, IRankProgram> makeProgram)
    {
        (LocalRank, this.makeProgram) = (localRank, makeProgram);
        new Thread(Loop) { IsBackground = true, Name = $"rank-{localRank}" }.Start();
    }

    /// <inheritdoc/>
    public void Post(RankCommand command)
    {
        if (command is AbortRank abort) AbortRunning(abort.Attempt, abort.Reason);
        inbox.Add(command);
    }

    /// <inheritdoc/>
    public void Subscribe(Action<RankReport> sink) => this.sink = sink;

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        lock (gate) running?.Program.Abort("the silo is stopping");
        inbox.CompleteAdding();
        await ended.Task;
        inbox.Dispose();
    }

    private void Loop()
    {
        // An AbortRank that overtakes its StartRank still counts: the attempt is remembered as aborted.
        var aborted = new Dictionary<string, int>();
        foreach (var command in inbox.GetConsumingEnumerable())
        {
            if (command is AbortRank abort) aborted[abort.Attempt.JobId] = abort.Attempt.Attempt;
            if (command is StartRank start && start.Attempt.Attempt > aborted.GetValueOrDefault(start.Attempt.JobId)) RunAttempt(start);
        }
        ended.SetResult();
    }

    private void RunAttempt(StartRank start)
    {
        var link = new RankLink(start.Attempt, start.Rank, inbox, report => sink(report));
        IRankProgram? program = null;
        try
        {
            program = makeProgram(start);
            lock (gate) running = (start.Attempt, program);
            program.Run(link);
        }
        catch (ConfigException e)
        {
            sink(new RankFaulted(start.Attempt, start.Rank, e.Message, IsUserError: true, e.ToString()));
        }
        catch (RankAbortedException e)
        {
            sink(new RankFaulted(start.Attempt, start.Rank, e.Message, IsUserError: false, ""));
        }
        catch (RankFaultException e)
        {
            sink(new RankFaulted(start.Attempt, start.Rank, e.Message, IsUserError: false, e.ToString()));
        }
        catch (Exception e)
        {
            sink(new RankFaulted(start.Attempt, start.Rank, $"Rank {start.Rank} failed: {e.Message}", IsUserError: false, e.ToString()));
        }
        finally
        {
            program?.Dispose(); // an abort ends what it waits for
            lock (gate) running = null;
            link.ReturnDeferred();
        }
    }

    private void AbortRunning(AttemptId attempt, string reason)
    {
        lock (gate)
            if (running is { } current && current.Attempt == attempt) current.Program.Abort(reason);
    }
}

/// <summary>The attempt was aborted by the control plane.</summary>
public sealed class RankAbortedException(string reason) : Exception(reason);

/// <summary>
/// The program's side of the command queue: commands of its own attempt, stale ones dropped, those of later work kept for the worker.
/// </summary>
public sealed class RankLink
{
    private readonly BlockingCollection<RankCommand> inbox;
    private readonly Action<RankReport> sink;
    private readonly List<RankCommand> deferred = [];

    public AttemptId Attempt { get; }

    /// <summary>Global rank.</summary>
    public int Rank { get; }

    public RankLink(AttemptId attempt, int rank, BlockingCollection<RankCommand> inbox, Action<RankReport> sink) =>
        (Attempt, Rank, this.inbox, this.sink) = (attempt, rank, inbox, sink);

    /// <summary>Sends a report to the control plane.</summary>
    public void Report(RankReport report) => sink(report);

    /// <summary>Sends a line for the user.</summary>
    public void Notice(string text, RankNoticeLevel level = RankNoticeLevel.Information) => sink(new RankNotice(Attempt, Rank, level, text));

    /// <summary>The next command of this attempt, or null when none is waiting.</summary>
    /// <exception cref="RankAbortedException">The attempt was aborted.</exception>
    public RankCommand? TryTake()
    {
        while (inbox.TryTake(out var command))
            if (Accept(command)) return command;
        return null;
    }

    /// <summary>Waits for the next command of this attempt.</summary>
    /// <exception cref="RankFaultException">Nothing came in time.</exception>
    /// <exception cref="RankAbortedException">The attempt was aborted, or the worker is shutting down.</exception>
    public RankCommand Take(TimeSpan timeout, string waitingFor)
    {
        while (true)
        {
            if (!inbox.TryTake(out var command, timeout))
                throw inbox.IsAddingCompleted
                    ? new RankAbortedException("The silo is stopping.")
                    : new RankFaultException($"Rank {Rank} waited {timeout.TotalSeconds:F0} s for {waitingFor}; the control plane did not answer.");
            if (Accept(command)) return command;
        }
    }

    internal void ReturnDeferred()
    {
        if (inbox.IsAddingCompleted) return;
        foreach (var command in deferred) inbox.Add(command);
    }

    private bool Accept(RankCommand command)
    {
        if (command.Attempt == Attempt)
            return command is AbortRank abort ? throw new RankAbortedException(abort.Reason) : true;
        var isOlder = command.Attempt.JobId == Attempt.JobId && command.Attempt.Attempt < Attempt.Attempt;
        if (!isOlder) deferred.Add(command);
        return false;
    }
}
