using System.Threading.Channels;
using Megatron.Compute.Training;

namespace Megatron.Testing;

/// <summary>
/// A rank without tensors: it reports what a test tells it to, when it tells it to. Nothing runs by itself and no time passes, so every order of
/// messages can be played. With a <see cref="Script"/> it answers commands at once, on the caller's thread.
/// </summary>
public sealed class FakeRankWorker : IRankWorker
{
    private readonly Channel<RankCommand> commands = Channel.CreateUnbounded<RankCommand>();
    private Action<RankReport>? sink;
    private AttemptId? lastAborted;

    public FakeRankWorker(int localRank) => LocalRank = localRank;

    /// <inheritdoc/>
    public int LocalRank { get; }

    /// <summary>True after the silo has ended its workers.</summary>
    public bool IsDisposed { get; private set; }

    /// <summary>What to report for each command; null leaves it to the test.</summary>
    public Func<FakeRankWorker, RankCommand, IEnumerable<RankReport>>? Script { get; init; }

    /// <inheritdoc/>
    public void Post(RankCommand command)
    {
        if (Script is not null)
        {
            foreach (var report in Script(this, command))
                Report(report);
        }
        commands.Writer.TryWrite(command);
    }

    /// <inheritdoc/>
    public void Subscribe(Action<RankReport> sink) => this.sink = sink;

    /// <summary>Sends a report as the worker's thread would.</summary>
    public void Report(RankReport report) =>
        (sink ?? throw new InvalidOperationException("nobody has subscribed to this worker")).Invoke(report);

    /// <summary>
    /// The next command, in order; it must be of the kind named. Waits for it, and fails after two minutes. An abort that is said again is passed
    /// over, as a real worker does.
    /// </summary>
    public async Task<TCommand> NextAsync<TCommand>() where TCommand : RankCommand
    {
        RankCommand command;
        do
            command = await commands.Reader.ReadAsync().AsTask().WaitAsync(TimeSpan.FromMinutes(2));
        while (command is AbortRank repeated && repeated.Attempt == lastAborted);
        if (command is AbortRank abort)
            lastAborted = abort.Attempt;
        return command as TCommand ?? throw new InvalidOperationException($"expected {typeof(TCommand).Name}, got {command}");
    }

    /// <summary>True when no command waits to be read.</summary>
    public bool HasNoCommand => commands.Reader.Count == 0;

    /// <inheritdoc/>
    public ValueTask DisposeAsync()
    {
        IsDisposed = true;
        return ValueTask.CompletedTask;
    }

    /// <summary>The report that a rank has built its model.</summary>
    public static RankStarted Started(StartRank start, long firstIteration = 1) =>
        new(start.Attempt, start.Rank, firstIteration, NumParameters: 1000, DataPlanHash: 0xDA7A);

    /// <summary>A step with loss 1/iteration over 10 tokens per rank and 100 ms.</summary>
    public static StepReport Step(StartRank start, long iteration) => new(
        start.Attempt, start.Rank, iteration, LossSum: 10.0 / iteration, TokenCount: 10, LossBits: BitConverter.SingleToInt32Bits(1f / iteration),
        GradNorm: 0.5, LearningRate: 1e-4, LossScale: 1, Skipped: false, BatchHash: (ulong)iteration, StepTime: TimeSpan.FromMilliseconds(100))
    {
        FloatingPointOperations = 1e11,
    };

    /// <summary>A script that trains the given number of steps at once and ends well; every rank of the job may use it.</summary>
    public static Func<FakeRankWorker, RankCommand, IEnumerable<RankReport>> TrainToEnd(int numSteps, int logInterval = 5) =>
        (_, command) => command is StartRank start ? Reports(start, numSteps, logInterval) : [];

    private static IEnumerable<RankReport> Reports(StartRank start, int numSteps, int logInterval)
    {
        yield return Started(start);
        if (start.Rank == 0)
            yield return new TrainingPlanned(start.Attempt, start.Rank, numSteps, logInterval, GlobalBatchSize: 16);
        for (int iteration = 1; iteration <= numSteps; iteration++)
            yield return Step(start, iteration);
        yield return new RankFinished(start.Attempt, start.Rank, numSteps, Completed: true);
    }
}
