using System.Globalization;
using System.Text.Json;
using Megatron.Client.Jobs;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Grains.Stages;

namespace Megatron.Client.Tests.Jobs;

public sealed class JobConsoleTests : IDisposable
{
    private static readonly AttemptId attempt = new("job", 1);
    private static readonly DateTimeOffset now = new(2025, 5, 24, 8, 11, 12, TimeSpan.Zero);
    private static readonly TimeZoneInfo zone = TimeZoneInfo.CreateCustomTimeZone("test", TimeSpan.FromHours(2), "test", "test");

    private readonly string folder = Path.Combine(Path.GetTempPath(), "megatron-console-" + Guid.NewGuid().ToString("N"));
    private readonly StringWriter output = new();
    private readonly StringWriter error = new();
    private long sequence;

    public void Dispose()
    {
        if (Directory.Exists(folder))
            Directory.Delete(folder, recursive: true);
    }

    [Fact]
    public void Steps_LogIntervalOf5_GiveTheLinesOfTheReference()
    {
        using (var console = NewConsole())
        {
            console.Show(Planned(train: 12, interval: 5, worldSize: 2));
            for (int iteration = 1; iteration <= 12; iteration++)
                console.Show(Step(iteration, loss: iteration));
        }
        Assert.Equal(
            """
            [2025-05-24 10:11:12] iteration        1/      12 | consumed samples:           16 | elapsed time per iteration (ms): 100.0 | throughput per GPU (TFLOP/s/GPU): 15.0 | learning rate: 1.000000E-05 | global batch size:    16 | lm loss: 1.000000E+00 | loss scale: 1.0 | grad norm: 0.123 | number of skipped iterations:   0 | number of nan iterations:   0 |
            [2025-05-24 10:11:12] iteration        5/      12 | consumed samples:           80 | elapsed time per iteration (ms): 100.0 | throughput per GPU (TFLOP/s/GPU): 15.0 | learning rate: 1.000000E-05 | global batch size:    16 | lm loss: 3.500000E+00 | loss scale: 1.0 | grad norm: 0.123 | number of skipped iterations:   0 | number of nan iterations:   0 |
            [2025-05-24 10:11:12] iteration       10/      12 | consumed samples:          160 | elapsed time per iteration (ms): 100.0 | throughput per GPU (TFLOP/s/GPU): 15.0 | learning rate: 1.000000E-05 | global batch size:    16 | lm loss: 8.000000E+00 | loss scale: 1.0 | grad norm: 0.123 | number of skipped iterations:   0 | number of nan iterations:   0 |
            [after training is done] datetime: 2025-05-24 10:11:12 

            """.ReplaceLineEndings("\n"), output.ToString());
    }

    [Fact]
    public void Steps_AreTheSameInEveryCulture()
    {
        var culture = CultureInfo.CurrentCulture;
        CultureInfo.CurrentCulture = new CultureInfo("de-DE");
        try
        {
            Steps_LogIntervalOf5_GiveTheLinesOfTheReference();
        }
        finally
        {
            CultureInfo.CurrentCulture = culture;
        }
    }

    [Fact]
    public void Steps_SkippedAndNotFinite_AreCountedAndKeptOutOfTheMean()
    {
        using (var console = NewConsole())
        {
            console.Show(Planned(train: 4, interval: 3, worldSize: 1));
            console.Show(Step(1, 2));
            console.Show(Step(2, 4));
            console.Show(Skipped(Step(3, double.NaN)));
        }
        string line = output.ToString().Split('\n')[1];
        Assert.Contains("| lm loss: 4.000000E+00 |", line, StringComparison.Ordinal);
        Assert.EndsWith("| number of skipped iterations:   1 | number of nan iterations:   1 |", line, StringComparison.Ordinal);
    }

    [Fact]
    public void Steps_OfAModelWithExperts_ShowTheLossesOfItsRouters()
    {
        using (var console = NewConsole())
        {
            console.Show(Planned(train: 3, interval: 3, worldSize: 1));
            foreach (var (iteration, balance) in ((long, double)[])[(1, 9), (2, 1.25), (3, 1.75)])
            {
                var done = Step(iteration, 2);
                console.Show(done with { Step = done.Step with { LoadBalancingLoss = balance, ZLoss = 0.5 } });
            }
        }
        Assert.Contains(
            "| lm loss: 2.000000E+00 | load_balancing_loss: 1.500000E+00 | z_loss: 5.000000E-01 | loss scale:", output.ToString().Split('\n')[1], StringComparison.Ordinal);
        var row = JsonDocument.Parse(File.ReadAllLines(Path.Combine(folder, "logging.jsonl"))[1]).RootElement;
        Assert.Equal((1.5, 0.5), (row.GetProperty("load_balancing_loss").GetDouble(), row.GetProperty("z_loss").GetDouble()));
    }

    [Fact]
    public void Steps_BeforeThePlan_WaitForIt()
    {
        using var console = NewConsole();
        console.Show(Step(1, 2));
        Assert.Equal("", output.ToString());
        console.Show(Planned(train: 4, interval: 5, worldSize: 1));
        Assert.Contains("iteration        1/       4", output.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public void LoggingFile_HasTheKeysOfTheReference()
    {
        using (var console = NewConsole())
        {
            console.Show(Planned(train: 100, interval: 1, worldSize: 1));
            console.Show(Step(1, 2.5));
            console.Show(Skipped(Step(2, double.NaN)));
            console.Show(new JobEvaluated(++sequence, now, new StageEvaluation(2, 6, 4, Final: false)));
        }
        var rows = File.ReadAllLines(Path.Combine(folder, "logging.jsonl")).Select(line => JsonDocument.Parse(line).RootElement).ToList();
        Assert.Equal(
            ["lm loss", "grad_norm", "learning_rate", "elapsed_time_per_iteration", "throughput", "loss_scale", "consumed_samples", "global_step/max_steps"],
            rows[0].EnumerateObject().Select(property => property.Name));
        Assert.Equal(2.5, rows[0].GetProperty("lm loss").GetDouble());
        Assert.Equal(16, rows[0].GetProperty("consumed_samples").GetInt64());
        Assert.Equal("1/100", rows[0].GetProperty("global_step/max_steps").GetString());
        Assert.Equal(JsonValueKind.Null, rows[1].GetProperty("lm loss").ValueKind);
        Assert.Equal(1.5, rows[2].GetProperty("eval_lm loss").GetDouble());
        Assert.Equal("2/100", rows[2].GetProperty("global_step/max_steps").GetString());
    }

    [Theory]
    [InlineData(false, " validation loss at iteration 100 | lm loss value: 1.500000E+00 | lm loss PPL: 4.481689E+00 | ")]
    [InlineData(true, " validation loss at iteration 100 on validation set | lm loss value: 1.500000E+00 | lm loss PPL: 4.481689E+00 | ")]
    public void Evaluation_StandsBetweenDashes(bool final, string expected)
    {
        var lines = ConsoleLines.Evaluation(new StageEvaluation(100, 3, 2, final));
        Assert.Equal([new string('-', expected.Length + 1), expected, new string('-', expected.Length + 1)], lines);
    }

    [Fact]
    public void Notices_WarningsAndFailures_ArePlainWhenPipedAndColouredOnATerminal()
    {
        using (var console = NewConsole())
            ShowAll(console);
        Assert.Equal("hello\nwarning: careful\n  successfully saved checkpoint from iteration      10 to /run/iter_0000010\n", output.ToString());
        Assert.Equal("error: the disk is full\n", error.ToString());
        using (var console = NewConsole(columns: 120))
            ShowAll(console);
        Assert.Contains("\e[33mwarning: careful\e[0m", output.ToString(), StringComparison.Ordinal);
        Assert.EndsWith("\e[31merror: the disk is full\e[0m\n", error.ToString(), StringComparison.Ordinal);
        Assert.False(Directory.Exists(folder));
    }

    private void ShowAll(JobConsole console)
    {
        console.Show(new JobNotice(++sequence, now, 0, RankNoticeLevel.Information, "hello"));
        console.Show(new JobNotice(++sequence, now, 0, RankNoticeLevel.Warning, "careful"));
        console.Show(new JobCheckpointSaved(++sequence, now, new CommittedCheckpoint(10, "/run/iter_0000010")));
        console.Show(new JobPhaseChanged(++sequence, now, JobPhase.Failed, 1, "fault", new JobOutcome(1, "the disk is full")));
    }

    private JobConsole NewConsole(int? columns = null) => new(output, error, new RunLogOptions { Folder = folder, Throughput = true, TensorBoard = null }, columns, zone);

    private JobPlanned Planned(long train, int interval, int worldSize) =>
        new(++sequence, now, new TrainingPlanned(attempt, 0, train, interval, GlobalBatchSize: 16), worldSize);

    private JobStepDone Step(long iteration, double loss) => new(++sequence, now, new StageStepReport
    {
        Stage = 0,
        Iteration = iteration,
        LossSum = loss * 4,
        TokenCount = 4,
        LossBits = 0,
        GradNorm = 0.1234,
        LearningRate = 1e-5,
        LossScale = 1,
        Skipped = false,
        BatchHash = 1,
        BatchHashesAgree = true,
        StepTime = TimeSpan.FromMilliseconds(100),
        SlowestRank = 0,
        FloatingPointOperations = 3e12,
    });

    private static JobStepDone Skipped(JobStepDone done) => done with { Step = done.Step with { Skipped = true } };
}
