using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>A followed job on the console, as text or as JSON lines, and the lines before and after it.</summary>
public sealed class JobView : IDisposable
{
    private readonly CommandConsole output;
    private readonly bool isJson;
    private readonly JobConsole text;

    private JobView(CommandConsole output, RunLogOptions? files, string form)
    {
        this.output = output;
        isJson = form == "json";
        text = new JobConsole(isJson ? TextWriter.Null : output.Out, output.Error, files, isJson ? null : output.Columns, TimeZoneInfo.Local);
        Console = isJson ? new JobEventLines(output.Out, text, TimeProvider.System) : text;
    }

    /// <summary>Where the events go.</summary>
    public IJobConsole Console { get; }

    /// <summary>For the console that submitted the run: it also keeps the files of the run's folder.</summary>
    /// <param name="form">text or json.</param>
    public static JobView ForRun(CommandConsole output, PreparedRun run, string form) => new(output, RunLogOptions.Of(run.Config, run.Folder), form);

    /// <summary>For a console that looks on: it may come late, when the job has told its length long ago.</summary>
    /// <param name="form">text or json.</param>
    /// <param name="spec">What was submitted, when it is known.</param>
    public static JobView ForOnlooker(CommandConsole output, string form, JobSpec? spec)
    {
        var view = new JobView(output, files: null, form);
        if (spec is not null) view.text.Assume(TrainingConfig.FromJson(spec.ConfigJson), spec.WorldSize);
        return view;
    }

    /// <summary>What is known before the first event.</summary>
    public void SayStart(PreparedRun run)
    {
        foreach (var notice in run.Notices) Say(notice);
        Say($"output folder: {run.Folder}");
    }

    /// <summary>What to do next with a run that ended well.</summary>
    public void SayWhereTheResultsAre(string folder)
    {
        if (isJson) return;
        Say($"checkpoints, args.json and logging.jsonl: {folder}");
        Say($"talk to the model: {output.Program} infer --model {folder} --stream");
    }

    /// <summary>A line beside the events; readers of JSON must not meet it.</summary>
    public void Say(string line)
    {
        var writer = isJson ? output.Error : output.Out;
        writer.WriteLine(line);
        writer.Flush();
    }

    public void Dispose() => text.Dispose();
}
