using Megatron.Grains.Jobs;
using Megatron.Testing;

namespace Megatron.Silo.Tests;

/// <summary>What a silo shows on the console while nothing is wrong: nothing.</summary>
[Collection<Alone>]
public sealed class SiloLogTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)] // the silo stops in the middle of the job
    public async Task StartAndStop_OfALocalSilo_ShowsNothingOnTheConsole(bool watchesToTheEnd)
    {
        using var folder = new TemporaryFolder();
        var shown = new StringWriter();
        var before = Console.Error;
        Console.SetError(TextWriter.Synchronized(shown));
        try
        {
            for (int i = 0; i < 3; i++)
            {
                await using var silo = await SiloHost.StartAsync(
                    SiloOptions.ForLocalJob(1, folder.Combine("log")), index => new FakeRankWorker(index) { Script = FakeRankWorker.TrainToEnd(1000) });
                var job = silo.Grains.GetGrain<IJobGrain>("a");
                await job.Submit(new JobSpec { JobId = "a", Name = "a", ConfigJson = "{}", WorldSize = 1, OutputFolder = folder.Combine("out") });
                if (!watchesToTheEnd)
                    continue;
                await foreach (var _ in job.Watch(1)) { }
            }
        }
        finally
        {
            Console.SetError(before);
        }
        Assert.Empty(shown.ToString());
    }
}
