using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>
/// Shows a job as plain lines and, for the console that submitted it, writes its <c>logging.jsonl</c>. On a terminal there is a progress line below them, and colour for warnings
/// and errors.
/// </summary>
public sealed class JobConsole : IJobConsole, IDisposable
{
    private const string Yellow = "\e[33m";
    private const string Red = "\e[31m";
    private const string NoColour = "\e[0m";

    private readonly TextWriter output;
    private readonly TextWriter error;
    private readonly bool isTerminal;
    private readonly TimeZoneInfo zone;
    private readonly TrainingLogFile? log;
    private readonly RunLogOptions? options;
    private readonly List<JobStepDone> early = [];
    private readonly ProgressLine? progress;
    private TrainingPlanned? plan;
    private StepWindow? window;
    private TensorBoardLog? tensorBoard;

    /// <param name="options">The run folder and what is written there; null for a console that only looks on and writes no file.</param>
    /// <param name="columns">Width of the terminal; null when the output is piped: then there is no colour and no progress line.</param>
    /// <param name="zone">Time zone of the times shown.</param>
    public JobConsole(TextWriter output, TextWriter error, RunLogOptions? options, int? columns, TimeZoneInfo zone)
    {
        // A signal speaks while events are shown.
        this.output = TextWriter.Synchronized(output);
        this.error = TextWriter.Synchronized(error);
        isTerminal = columns is not null;
        progress = columns is { } width ? new ProgressLine(this.output, width) : null;
        this.zone = zone;
        this.options = options;
        log = options is null ? null : new TrainingLogFile(options);
    }

    /// <inheritdoc/>
    public void Show(JobEvent item)
    {
        switch (item)
        {
            case JobStepDone step:
                ShowStep(step);
                break;
            case JobPlanned planned:
                ShowPlan(planned.Plan, planned.WorldSize);
                break;
            case JobEvaluated evaluated:
                ShowEvaluation(evaluated);
                break;
            case JobCheckpointSaved saved:
                Say(ConsoleLines.Saved(saved.Checkpoint.Iteration, saved.Checkpoint.Folder));
                break;
            case JobNotice notice:
                ShowNotice(notice.Level, notice.Text);
                break;
            case JobStraggler { Factor: { } factor } slow:
                ShowNotice(RankNoticeLevel.Warning, string.Create(CultureInfo.InvariantCulture,
                    $"rank {slow.Rank} is {factor:F1} times slower than the other ranks of stage {slow.Stage} at step {slow.Iteration}"));
                break;
            case JobStraggler normal:
                Say(string.Create(CultureInfo.InvariantCulture, $"rank {normal.Rank} is as fast as the other ranks of stage {normal.Stage} again at step {normal.Iteration}"));
                break;
            case JobEventsSkipped skipped:
                Say(skipped.NumSkipped == 0
                    ? "(the job has moved to another silo; what it said just before is not kept)"
                    : string.Create(CultureInfo.InvariantCulture, $"({skipped.NumSkipped} earlier events are not kept)"));
                break;
            case JobPhaseChanged changed:
                ShowPhase(changed);
                break;
        }
    }

    /// <summary>
    /// Takes the length of the run from its configuration until the job tells it, so that a console that comes late can show steps.
    /// </summary>
    public void Assume(TrainingConfig config, int worldSize)
    {
        if (config.TrainIters is { } iterations)
            ShowPlan(new TrainingPlanned(default, 0, iterations, config.LogInterval, config.GlobalBatchSize), worldSize);
    }

    /// <inheritdoc/>
    public void Say(string line)
    {
        progress?.Hide();
        output.WriteLine(line);
        output.Flush();
    }

    /// <inheritdoc/>
    public void SayError(string line)
    {
        progress?.Hide();
        foreach (string sentence in line.Split('\n', StringSplitOptions.RemoveEmptyEntries))
            error.WriteLine(isTerminal ? $"{Red}error: {sentence}{NoColour}" : "error: " + sentence);
        error.Flush();
    }

    public void Dispose()
    {
        log?.Dispose();
        tensorBoard?.Dispose();
    }

    // Plan and steps may come from different pipeline stages, hence in either order: steps wait for the plan. A restarted attempt plans anew.
    private void ShowPlan(TrainingPlanned planned, int worldSize)
    {
        plan = planned;
        window = new StepWindow(plan.TrainIterations, plan.LogInterval, plan.GlobalBatchSize, worldSize);
        if (options?.TensorBoard is { } points)
            tensorBoard ??= new TensorBoardLog(points, plan.GlobalBatchSize, worldSize);
        foreach (var step in early)
            ShowStep(step);
        early.Clear();
    }

    private void ShowStep(JobStepDone done)
    {
        if (window is null || plan is null)
        {
            early.Add(done);
            return;
        }
        tensorBoard?.Write(done.Time, done.Step);
        if (window.Add(done.Step) is { } summary)
        {
            Say(ConsoleLines.Step(Local(done), summary, options?.Throughput ?? false));
            log?.Write(summary);
        }
        progress?.Show(done.Step.Iteration, plan.TrainIterations, done.Step.StepTime, done.Step.Loss);
        if (done.Step.Iteration == plan.TrainIterations)
            Say($"[after training is done] datetime: {ConsoleLines.Time(Local(done))} ");
    }

    private void ShowEvaluation(JobEvaluated evaluated)
    {
        var evaluation = evaluated.Evaluation;
        tensorBoard?.Write(evaluated.Time, evaluation);
        foreach (string line in ConsoleLines.Evaluation(evaluation))
            Say(line);
        log?.Write(evaluation, plan?.TrainIterations ?? evaluation.Iteration);
    }

    private void ShowNotice(RankNoticeLevel level, string text)
    {
        if (level is not RankNoticeLevel.Warning)
            Say(text);
        else
            Say(isTerminal ? Yellow + "warning: " + text + NoColour : "warning: " + text);
    }

    private void ShowPhase(JobPhaseChanged changed)
    {
        switch (changed.Phase)
        {
            case JobPhase.Recovering:
                Say($"[{ConsoleLines.Time(Local(changed))}] the ranks are started again: {changed.Reason}");
                break;
            case JobPhase.Starting when changed.Attempt > 1:
                Say(string.Create(CultureInfo.InvariantCulture, $"[{ConsoleLines.Time(Local(changed))}] attempt {changed.Attempt}: {changed.Reason}"));
                break;
            case JobPhase.Failed:
                SayError(changed.Outcome?.Message ?? changed.Reason);
                break;
            case JobPhase.Cancelled:
                Say(changed.Outcome?.Message ?? changed.Reason);
                SayEnd(changed);
                break;
            case JobPhase.Completed:
                SayEnd(changed);
                break;
        }
    }

    private void SayEnd(JobEvent item) => Say($"End time of running main: {ConsoleLines.Time(Local(item))}");

    private DateTimeOffset Local(JobEvent item) => TimeZoneInfo.ConvertTime(item.Time, zone);
}
